"""Is what code of a migration does, and catches, never taken for more or less than it is?"""

import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from django.db import DatabaseError, connections, migrations, transaction

from gotong_royong.zero_downtime.exceptions import BlockedTooLong, HalfCommitted, Interrupted, StepFailed
from gotong_royong.zero_downtime.models import Step
from gotong_royong.zero_downtime.operations import repeatable
from tests.databases import conninfo, url
from tests.zero_downtime.load import holding
from tests.zero_downtime.running.test_watched import SOMEBODY_WAITS
from tests.zero_downtime.shop import ITEMS, Shop
from tests.zero_downtime.steps import ask, run

pytestmark = pytest.mark.once

ROWS = 6  # each of which is one at first
PRICES = "CREATE TABLE prices (id int PRIMARY KEY, price int); INSERT INTO prices SELECT generate_series(1, 6), 1"
RAISE = "UPDATE prices SET price = price * 100 WHERE id = %s"
SUM = "SELECT sum(price) FROM prices"
HOLD_5 = "SELECT FROM prices WHERE id = 5 FOR UPDATE"


@pytest.fixture
def shop(copied, settings):
    settings.ZERO_DOWNTIME_BLOCK_BUDGET = 0.5
    database = copied("accounts")
    with database.cursor() as cursor:
        cursor.execute(PRICES)
    return database


@pytest.fixture
def project(scratch, tmp_path):
    project = Shop(tmp_path, url(scratch))
    project.write("0001_items", ITEMS)
    return project


def calls(function):
    """Return an operation that calls the function with a cursor, and a list that grows with each call."""
    made = []

    def code(apps, editor):
        made.append(1)
        with editor.connection.cursor() as cursor:
            function(cursor)

    vars(code).update(vars(function))
    return migrations.RunPython(code), made


def raise_each(cursor, *numbers):
    for number in numbers or range(1, ROWS + 1):
        try:
            with transaction.atomic(using=cursor.db.alias):
                cursor.execute(RAISE, [number])
        except DatabaseError:
            pass  # as its author does, and goes on


@contextmanager
def somebody_who_wants(database, number):
    """Wants a row as soon as somebody waits for a lock; yields for how long that took, once it did."""
    took, over = [], threading.Event()

    def want():
        with psycopg.connect(**conninfo(database), autocommit=True, application_name="victim") as session:
            while not session.execute(SOMEBODY_WAITS).rowcount:
                if over.wait(0.01):
                    return
            started = time.monotonic()
            session.execute("SELECT FROM prices WHERE id = %s FOR UPDATE", [number])
            took.append(time.monotonic() - started)

    thread = threading.Thread(target=want)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("atomic", [True, False])
def test_code_waits_for_a_row_as_in_stock_django(shop, atomic):
    operation, made = calls(raise_each)
    with holding(conninfo(shop), HOLD_5, 1.5, from_first_wait=True):
        step = run(shop, operation, atomic=atomic)
    assert ask(shop, SUM) == (100 * ROWS,)
    assert (step.tries, len(made)) == (1, 1)
    assert step.lock_wait > 1.0


def test_code_gives_way_once_somebody_waits_behind_it_and_is_run_again_as_a_whole(shop):
    operation, made = calls(raise_each)
    with holding(conninfo(shop), HOLD_5, 2.5, from_first_wait=True), somebody_who_wants(shop, 1) as took:
        step = run(shop, operation)
    assert ask(shop, SUM) == (100 * ROWS,)
    assert step.tries == len(made) > 1
    assert took[0] < 1.5


def in_batches(cursor):
    with transaction.atomic(using=cursor.db.alias):
        cursor.execute(RAISE, [1])
    with transaction.atomic(using=cursor.db.alias):
        cursor.execute(RAISE, [2])
        cursor.execute(RAISE, [5])


def test_code_that_has_committed_something_is_not_run_again(shop):
    operation, made = calls(in_batches)
    said = pytest.raises(Interrupted, match=r"Its code was interrupted half-way\. What it committed stays")
    with holding(conninfo(shop), HOLD_5, 30), somebody_who_wants(shop, 2), said:
        run(shop, operation, atomic=False)
    assert ask(shop, SUM) == (100 + ROWS - 1,)
    assert len(made) == 1
    assert Step.objects.using(shop.alias).latest("pk").status == "failed"


def test_code_whose_transaction_is_its_own_is_run_again(shop):
    operation, made = calls(raise_each)
    operation.atomic = True
    with holding(conninfo(shop), HOLD_5, 2.5, from_first_wait=True), somebody_who_wants(shop, 1):
        run(shop, operation, atomic=False)
    assert ask(shop, SUM) == (100 * ROWS,)
    assert len(made) > 1


def test_code_that_says_so_is_run_again(shop):
    @repeatable
    def set_each(cursor):
        with transaction.atomic(using=cursor.db.alias):
            cursor.execute("UPDATE prices SET price = 100 WHERE id = 1")
        with transaction.atomic(using=cursor.db.alias):
            cursor.execute("UPDATE prices SET price = 100 WHERE id = 2")
            cursor.execute("UPDATE prices SET price = 100 WHERE id > 2")

    operation, made = calls(set_each)
    with holding(conninfo(shop), HOLD_5, 2.5, from_first_wait=True), somebody_who_wants(shop, 2):
        run(shop, operation, atomic=False)
    assert ask(shop, SUM) == (100 * ROWS,)
    assert len(made) > 1


def elsewhere(cursor, another):
    with another.cursor() as other:
        other.execute("CREATE TABLE audit (id int)")


def commit(cursor, another):
    cursor.execute("COMMIT")


def in_a_thread(cursor, another):
    def work():
        with connections[cursor.db.alias].cursor() as other:
            other.execute(RAISE, [1])
        connections[cursor.db.alias].close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("committing", "error"), [(elsewhere, Interrupted), (commit, HalfCommitted), (in_a_thread, Interrupted)]
)
def test_code_that_may_have_committed_in_a_roundabout_way_is_not_run_again(shop, another, committing, error):
    def code(cursor):
        committing(cursor, another)
        cursor.execute("LOCK TABLE users")

    operation, made = calls(code)
    with holding(conninfo(shop), "SELECT FROM users", 30), pytest.raises(error, match="lock timeout"):
        run(shop, operation)
    assert len(made) == 1


def in_another_session(cursor, another):
    copy = cursor.db.copy()
    with copy.cursor() as other:
        other.execute("SELECT 1")
    copy.close()


@pytest.mark.parametrize("working", [elsewhere, in_a_thread, in_another_session])
def test_it_is_said_once_that_nobody_watches_another_session(shop, another, working):
    def code(cursor):
        working(cursor, another)
        in_a_thread(cursor, another)

    notes = []
    operation, _ = calls(code)
    run(shop, operation, report=lambda event, **facts: notes.append(facts["text"]) if event == "note" else None)
    assert len(notes) == 1
    assert "The migration also works in another session (process " in notes[0]
    assert "The watchdog does not see who waits for that" in notes[0]


ENDING = {
    "a commit past Django": "cursor.connection.commit()",
    "a commit, and work that follows": "cursor.connection.commit(); cursor.execute('SELECT 1')",
    "a statement past Django": "cursor.connection.execute('COMMIT'); cursor.connection.execute('SELECT 1')",
    "COMMIT": "cursor.execute('COMMIT')",
    "COMMIT and BEGIN": "cursor.execute('COMMIT; BEGIN')",
    "a rollback": "cursor.connection.rollback()",
    "an error that follows": "cursor.connection.commit(); {}['key']",
    "an error of the database": "cursor.connection.commit(); cursor.execute('SELECT 1 / 0')",
}


@pytest.mark.parametrize("ending", ENDING)
@pytest.mark.parametrize("options", [[], ["--auto-rollback"]])
def test_code_that_ends_its_transaction_is_no_success_and_nothing_is_said_to_be_as_before(project, ending, options):
    project.write("0002_color", 'column("items", "color")')
    project.write("0003_ends", "migrations.RunPython(code, migrations.RunPython.noop)")
    file = project.migrations / "0003_ends.py"
    body = f"cursor.execute('CREATE TABLE half (id int)'); {ENDING[ending]}"
    code = f"def code(apps, editor):\n    with editor.connection.cursor() as cursor:\n        {body}\n"
    file.write_text(code + file.read_text())
    said = project.fail("migrate", *options)
    assert "shop.0003_ends was stopped in operation 1 of 1. Its code ended the transaction around it" in said
    assert "Nothing of it is left" not in said
    assert "as it was before" not in said
    assert "What run 1 (migrate) applied before that stays (2 steps)" in said


def key(cursor):
    {}["price"]


def value(cursor):
    raise ValueError("no such price")


def duplicate_key(cursor):
    cursor.execute("INSERT INTO prices VALUES (1, 1)")


def duplicate_table(cursor):
    cursor.execute("CREATE TABLE prices (id int)")


def nowait(cursor):
    cursor.execute(f"{HOLD_5} NOWAIT")


def lock_nowait(cursor):
    cursor.execute("LOCK TABLE prices IN EXCLUSIVE MODE NOWAIT")


def own_limit(cursor):
    cursor.execute("SET LOCAL lock_timeout = '50ms'")
    cursor.execute(RAISE, [5])


@pytest.mark.parametrize("error", [key, value, duplicate_key, duplicate_table, nowait, lock_nowait, own_limit])
@pytest.mark.parametrize("atomic", [True, False])
def test_an_error_of_its_own_is_raised_at_once(shop, error, atomic):
    def code(cursor):
        with transaction.atomic(using=cursor.db.alias):
            cursor.execute(RAISE, [1])
        with transaction.atomic(using=cursor.db.alias):
            error(cursor)

    operation, made = calls(code)
    with holding(conninfo(shop), HOLD_5, 30), pytest.raises(StepFailed):
        run(shop, operation, atomic=atomic)
    assert len(made) == 1
    assert ask(shop, SUM) == ((ROWS if atomic else 99 + ROWS),)


def test_a_limit_of_ours_that_code_passes_over_is_no_success(shop):
    """Others would queue behind a lock of a table, so that has a limit; what was caught is raised at the end."""

    def code(cursor):
        try:
            with transaction.atomic(using=cursor.db.alias):
                cursor.execute("ALTER TABLE prices ADD COLUMN note text")
        except DatabaseError:
            pass

    operation, made = calls(code)
    with holding(conninfo(shop), "SELECT FROM prices", 1.0, from_first_wait=True):
        run(shop, operation)
    assert len(made) > 1
    assert ask(shop, "SELECT note FROM prices LIMIT 1") == (None,)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_verdict_that_code_passes_over_is_one(shop, atomic):
    def code(cursor):
        for _ in range(3):
            try:
                with transaction.atomic(using=cursor.db.alias):
                    cursor.execute(RAISE, [1])
                    cursor.execute("SELECT FROM pg_sleep(60), pg_advisory_lock(7)")
            except Exception:  # noqa: BLE001, S110 - as its author does
                pass

    operation, made = calls(code)
    with psycopg.connect(**conninfo(shop), autocommit=True) as session:

        def want():
            while not session.execute(SOMEBODY_WAITS).rowcount:
                time.sleep(0.01)
            session.execute("SELECT FROM prices WHERE id = 1 FOR UPDATE")

        victim = threading.Thread(target=want)
        victim.start()
        with pytest.raises(BlockedTooLong) as caught:
            run(shop, operation, atomic=atomic)
        victim.join()
    assert ("interrupted half-way" in str(caught.value)) is not atomic
    assert len(made) == 1
    assert ask(shop, SUM) == (ROWS,)
