"""Does nobody wait for a run unseen, whatever becomes of its output, its reporter or its watchdog?"""

import signal
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from django.core.management import call_command
from django.db import migrations

from gotong_royong.zero_downtime.exceptions import BlockedTooLong, Unwatched
from gotong_royong.zero_downtime.models import Step
from gotong_royong.zero_downtime.postgres import locks
from tests.databases import conninfo, look
from tests.zero_downtime.load import clock, holding, load
from tests.zero_downtime.running.test_lost import AT_WORK, BUSY, SESSION, wait_for
from tests.zero_downtime.shop import finish
from tests.zero_downtime.steps import ask, run

pytestmark = pytest.mark.once

ACCENTED = 'migrations.RunSQL("SELECT pg_sleep(60) /* café */", migrations.RunSQL.noop)'
ITEMS = "SELECT id FROM items"
HAS_LOCK = """
    SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database()
    WHERE locktype = 'advisory' AND classid::int8 = %s AND objid::int8 = %s
"""


@pytest.fixture
def watcher(scratch):
    with psycopg.connect(**conninfo(scratch), autocommit=True) as session:
        yield session


@pytest.fixture
def busy(shop, watcher):
    """Returns a run that holds items, and sleeps, with a budget of 1 s."""

    def start(*arguments, **environment):
        shop.write("0002_size", f'column("items", "size"), {ACCENTED}')
        process = shop.start("migrate", *arguments, **environment)
        wait_for(watcher, process, BUSY, *AT_WORK)
        return process

    return start


def write_python(shop, name, code, attributes=""):
    """Write a migration that calls the function ``code`` of this text."""
    shop.write(name, "migrations.RunPython(code, migrations.RunPython.noop)", attributes)
    file = shop.migrations / f"{name}.py"
    file.write_text(f"{code}\n{file.read_text()}")


def is_let_in(database):
    """Read the table that is held; return how long that took, in seconds of the clock that a busy machine stops."""
    started = clock().time()
    with psycopg.connect(**conninfo(database), autocommit=True) as victim:
        victim.execute(ITEMS)
    return clock().time() - started


def test_an_ascii_terminal_and_an_accent(busy, scratch):
    process = busy(PYTHONIOENCODING="ascii")
    while "caf" not in (line := process.stdout.readline()):
        assert line, finish(process)
    assert "caf\\xe9" in line
    assert is_let_in(scratch) < 2
    done = finish(process)
    assert done.err.startswith("BlockedTooLong: shop.0002_size was stopped in operation 2 of 2. It held")


def test_an_output_that_was_closed(busy, scratch):
    process = busy()
    process.stdout.close()
    time.sleep(3)  # after which something is said of the statement
    assert is_let_in(scratch) < 2
    with process.stderr:
        assert "BlockedTooLong: shop.0002_size" in process.stderr.read()
    assert process.wait(60) != 0


@pytest.mark.parametrize("event", ["progress", "retry"])
def test_a_reporter_that_raises_ends_the_statement(scratch, event):
    call_command("migrate", "accounts", database=scratch.alias, verbosity=0)

    def report(what, **facts):
        if what == event:
            raise RuntimeError("no more paper")

    slow = "ALTER TABLE users ADD COLUMN points int; SELECT pg_sleep(60)"
    held = psycopg.connect(**conninfo(scratch))
    if event == "retry":
        held.execute("LOCK TABLE users")
    started = time.monotonic()
    with held, pytest.raises(Exception, match="no more paper") as caught:
        run(scratch, *map(migrations.RunSQL, slow.split(";")), report=report)
    assert time.monotonic() - started < 10
    assert (event == "retry") is not isinstance(caught.value, Unwatched)
    assert Step.objects.using(scratch.alias).latest("pk").status == "failed"


def test_the_pause_after_any_try_has_a_bound():
    assert 0.02 < locks.pause_after(1) < 0.1
    assert all(2.5 <= locks.pause_after(attempt) <= 7.5 for attempt in (9, 1_024, 1_025, 10**6))


def test_auto_rollback_undoes_what_was_stopped_by_the_watchdog(shop, scratch):
    shop.succeed("migrate")
    before = look(scratch)
    shop.write("0002_color", 'column("items", "color")')
    shop.write("0003_size", f'column("items", "size"), {ACCENTED}')
    with psycopg.connect(**conninfo(scratch), autocommit=True) as session:
        process = shop.start("migrate", "--auto-rollback")
        wait_for(session, process, BUSY, *AT_WORK)
        session.execute(ITEMS)
    said = finish(process).err
    assert said.startswith("RolledBack: shop.0003_size was stopped in operation 2 of 2. It held AccessExclusiveLock")
    assert "Rolled back: shop.0002_color. The database is as it was before run 2 (migrate), if the" in said
    assert look(scratch) == before


CLOSING = {
    "close": "editor.connection.close()",
    "close_old_connections": "editor.connection.close_at = 0; close_old_connections()",
    "ended": "end(editor.connection)",
    "let go of, but not closed": "editor.former, editor.connection.connection = editor.connection.connection, None",
}
PYTHON = """
from django.db import DatabaseError, close_old_connections, transaction

def end(connection):
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    except DatabaseError:
        connection.close()

def code(apps, editor):
    {closing}
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('application_name')")
        print("It is", *cursor.fetchone())
    with transaction.atomic():
        editor.execute("ALTER TABLE items ADD COLUMN size int")
        editor.execute("SELECT pg_sleep(60)")
"""


@pytest.mark.parametrize("closing", CLOSING)
def test_the_watch_follows_the_connection_to_another_session(shop, scratch, watcher, closing):
    write_python(shop, "0002_size", PYTHON.format(closing=CLOSING[closing]), "atomic = False")
    process = shop.start("migrate")
    wait_for(watcher, process, BUSY, *AT_WORK)
    (held,) = watcher.execute(HAS_LOCK, [locks.AT_WORK >> 32, locks.AT_WORK & 0xFFFFFFFF]).fetchone()
    assert held == wait_for(watcher, process, BUSY, *AT_WORK)
    assert is_let_in(scratch) < 2
    done = finish(process)
    assert done.err.startswith("BlockedTooLong: shop.0002_size was stopped in operation 1 of 1. It held")
    assert "It is migrate\n" in done.out


TIMEOUTS = ["idle_session_timeout", "idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout"]
SLOW = """
import time

def code(apps, editor):
    editor.execute("SELECT 1")
    time.sleep(2)
"""


def test_timeouts_of_the_database_end_no_run(shop, scratch, watcher):
    """Not while a run idles in a transaction, waits for another run, or builds an index concurrently."""
    shop.succeed("migrate")
    newer = ["transaction_timeout"] if scratch.pg_version >= 170000 else []
    for name in TIMEOUTS + newer:
        watcher.execute(f"ALTER DATABASE {scratch.alias} SET {name} = '1s'")
    write_python(shop, "0002_slow", SLOW)
    index = "CREATE INDEX CONCURRENTLY by_id ON items (id)"
    shop.write("0003_index", f"migrations.RunSQL({index!r})", "atomic = False")
    calm = conninfo(scratch) | {"options": " ".join(f"-c {name}=0" for name in TIMEOUTS + newer)}
    with holding(calm, "LOCK TABLE items IN ROW EXCLUSIVE MODE", 2.5, from_first_wait=True):
        first, second = shop.start("migrate"), shop.start("migrate")
        outputs = [finish(first), finish(second)]
    assert [done.code for done in outputs] == [0, 0], outputs
    step = Step.objects.using(scratch.alias).get(name="0003_index")
    assert (step.tries, step.lock_wait > 1.5) == (1, True)


INDEX = "CREATE INDEX CONCURRENTLY IF NOT EXISTS trial ON users (is_staff)"
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'trial'::regclass"
WRITE = "LOCK TABLE users IN ROW EXCLUSIVE MODE"
READ = "SELECT id FROM users"
CHANGE = "UPDATE users SET is_staff = false"
SLEEPS = migrations.RunSQL("SELECT pg_sleep(60)")
SOMEBODY_WAITS = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'migrate'
          AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')
"""
ROW = "INSERT INTO users (username, email, password_hash) VALUES ('one', 'one@example.org', '!')"


@pytest.fixture
def users(copied, settings):
    settings.ZERO_DOWNTIME_BLOCK_BUDGET = 0.5
    return copied("accounts")


@contextmanager
def people(database, *statements, name="victim", **settings):
    """Each begins as soon as somebody waits, and again and again until it has what it wants; yields how they fared."""
    there = conninfo(database) | {"application_name": name}
    there["options"] = " ".join(f"-c {setting}={value}" for setting, value in settings.items())
    over, fared = threading.Event(), []

    def insist(statement):
        with psycopg.connect(**there, autocommit=True) as session:
            while not (session.execute(SOMEBODY_WAITS).rowcount or over.wait(0.01)):
                pass
            while not over.wait(0.05):
                try:
                    session.execute(statement)
                except psycopg.Error as error:
                    fared.append(type(error).__name__)
                else:
                    fared.append("let in")
                    return

    threads = [threading.Thread(target=insist, args=[statement]) for statement in statements]
    for thread in threads:
        thread.start()
    try:
        yield fared
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "statement",
    [
        "VACUUM users",
        "/* nightly */ VACUUM FULL users",
        "ANALYZE users",
        "CREATE STATISTICS by_staff ON is_staff, username FROM users",
        f"SELECT pg_advisory_lock_shared({locks.WORKER}); LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE; COMMIT",
    ],
)
def test_maintenance_that_waits_for_a_concurrent_build_leaves_it_no_invalid_index(users, statement):
    """Where that holds a snapshot, for which the build waits in turn, that is a deadlock, and the build begins anew."""
    with people(users, statement) as fared, holding(conninfo(users), WRITE, 2.0, from_first_wait=True):
        step = run(users, migrations.RunSQL(INDEX), atomic=False)
        assert step.blocked_sessions == 0
        assert ask(users, IS_VALID) == (True,)
        while not fared:
            time.sleep(0.01)
    assert fared == ["let in"]


@pytest.mark.parametrize(
    ("before", "statement", "where"),
    [
        ("ALTER TABLE users ADD COLUMN points int", READ, "AccessExclusiveLock on table users"),
        ("UPDATE users SET is_staff = true", CHANGE, "a row|table users"),
    ],
)
def test_users_who_give_up_and_come_again_are_kept_out_no_longer_than_the_budget(users, before, statement, where):
    with users.cursor() as cursor:
        cursor.execute(ROW)
    started = time.monotonic()
    with people(users, *[statement] * 3, statement_timeout=200) as fared:
        with pytest.raises(BlockedTooLong, match=f"It held .*({where}).* and somebody at any time for 0\\.[5-9] s"):
            run(users, migrations.RunSQL(before), SLEEPS)
        assert time.monotonic() - started < 10
        while fared.count("let in") < 3:
            time.sleep(0.01)
    assert fared.count("QueryCanceled") >= 3


def test_one_who_has_given_up_counts_until_the_table_is_free(users):
    """What comes again for a moment only is not seen each time."""
    fared = []

    def try_once():
        with psycopg.connect(**conninfo(users), autocommit=True, options="-c lock_timeout=200ms") as session:
            while not session.execute(SOMEBODY_WAITS).rowcount:
                time.sleep(0.01)
            try:
                session.execute(READ)
            except psycopg.errors.LockNotAvailable:
                fared.append("gave up")

    user = threading.Thread(target=try_once)
    user.start()
    with pytest.raises(BlockedTooLong, match=r"AccessExclusiveLock on table users.* for 0\.[5-9] s"):
        run(users, migrations.RunSQL("ALTER TABLE users ADD COLUMN points int"), SLEEPS)
    user.join()
    assert fared == ["gave up"]


def test_users_behind_maintenance_are_kept_out_no_longer_than_the_budget(users):
    """Who waits for what waits for us waits for us."""
    with (
        load(conninfo(users), READ),
        people(users, "VACUUM FULL users") as fared,
        holding(conninfo(users), WRITE, 30) as over,
    ):
        with pytest.raises(BlockedTooLong, match="1 session waited"):
            run(users, migrations.RunSQL(INDEX), atomic=False)
        over.set()
        while not fared:
            time.sleep(0.01)


@pytest.mark.parametrize("name", ["backfill", "migrate", "migrate: ledger"])
def test_no_name_makes_a_user_less_than_one(users, name):
    with people(users, READ, name=name) as fared:
        with pytest.raises(BlockedTooLong, match=r"AccessExclusiveLock on table users.* 1 session waited"):
            run(users, migrations.RunSQL("ALTER TABLE users ADD COLUMN points int"), SLEEPS)
        while not fared:
            time.sleep(0.01)
    assert fared == ["let in"]


def test_it_is_told_what_ran_last_before_python_idled(users):
    def code(apps, editor):
        editor.execute("ALTER TABLE users ADD COLUMN points int")
        holds.set()
        time.sleep(3)
        editor.execute("SELECT 1")

    def want():
        holds.wait()
        with psycopg.connect(**conninfo(users), autocommit=True) as session:
            session.execute(READ)

    holds = threading.Event()
    victim = threading.Thread(target=want)
    victim.start()
    with pytest.raises(BlockedTooLong, match=r"No statement ran\. The last one: ALTER TABLE users"):
        run(users, migrations.RunPython(code))
    victim.join()


def stop(process):
    process.send_signal(signal.SIGSTOP)


def do_nothing(process):
    pass


def let_it_say_something(process):
    time.sleep(4)


STANDING_STILL = {
    # A regular expression keeps the GIL until it has found out that nothing matches.
    "a library keeps the GIL": ("import re; re.match(r'(a|aa)+$', 'a' * 42 + 'b')", do_nothing),
    "it is stopped in a statement": ("editor.execute('SELECT pg_sleep(60)')", stop),
    "it is stopped in Python": ("import time; time.sleep(60)", stop),
    "nobody reads what it prints": ("print('x' * 1_000_000)", do_nothing),
    "nobody reads what the watchdog says": (
        "import os; os.write(1, b'x' * 65_500); editor.execute('SELECT pg_sleep(60)')",
        let_it_say_something,
    ),
}
HOLDS = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'migrate' AND query ~ 'held|pg_sleep'
"""
HOG = """
def code(apps, editor):
    editor.execute("ALTER TABLE items ADD COLUMN size int")
    editor.execute("SELECT 'held'")
    {hog}
"""


@pytest.mark.parametrize("why", STANDING_STILL)
def test_a_process_that_stands_still_keeps_nobody_waiting(shop, scratch, watcher, why):
    shop.succeed("migrate")
    hog, do = STANDING_STILL[why]
    write_python(shop, "0002_size", HOG.format(hog=hog))
    process = shop.start("migrate")
    try:
        while not watcher.execute(HOLDS).rowcount:
            assert process.poll() is None
        do(process)
        assert is_let_in(scratch) < 3
    finally:
        process.kill()
        finish(process)


def test_what_the_server_has_ended_is_told(shop, scratch, watcher):
    shop.succeed("migrate")
    write_python(shop, "0002_size", HOG.format(hog="editor.execute('SELECT pg_sleep(60)')"))
    process = shop.start("migrate")
    wait_for(watcher, process, BUSY, *AT_WORK)
    stop(process)
    assert is_let_in(scratch) < 3
    process.send_signal(signal.SIGCONT)
    done = finish(process)
    assert done.err.startswith("BlockedTooLong: shop.0002_size was stopped in operation 1 of 1. The watchdog stood")
    assert "somebody waited for" in done.err
    shop.write("0002_size", 'column("items", "size")')
    shop.succeed("migrate")
    ours = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'migrate%'"
    assert not watcher.execute(ours).rowcount


def test_the_backstop_is_put_in_place_again(shop, scratch, watcher):
    shop.succeed("migrate")
    write_python(shop, "0002_size", HOG.format(hog="editor.execute('SELECT pg_sleep(60)')"))
    process = shop.start("migrate")
    wait_for(watcher, process, BUSY, *AT_WORK)
    first = wait_for(watcher, process, SESSION, "migrate: backstop")
    watcher.execute("SELECT pg_terminate_backend(%s)", [first])
    assert wait_for(watcher, process, f"{BUSY} AND pid <> %s", "migrate: backstop", "%DO $backstop$%", first)
    stop(process)
    assert is_let_in(scratch) < 3
    process.kill()
    finish(process)


def test_who_waits_behind_others_is_let_in_though_the_process_stands_still(shop, scratch, watcher):
    shop.succeed("migrate")
    text = "editor.execute('LOCK TABLE items IN ROW SHARE MODE'); editor.execute('SELECT pg_sleep(60)')"
    write_python(shop, "0002_rows", f"def code(apps, editor):\n    {text}")
    process = shop.start("migrate")
    wait_for(watcher, process, BUSY, *AT_WORK)
    stop(process)
    with psycopg.connect(**conninfo(scratch), autocommit=True, application_name="nightly") as nightly:
        vacuum = threading.Thread(target=nightly.execute, args=["VACUUM FULL items"])
        vacuum.start()
        try:
            wait_for(watcher, process, f"{SESSION} AND wait_event_type = 'Lock'", "nightly")
            assert is_let_in(scratch) < 3
        finally:
            process.kill()
            finish(process)
            vacuum.join()


IS_LOCKED = """
    SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = to_regclass('items')
"""


@pytest.mark.parametrize("hog", ["import time; time.sleep(60)", "editor.execute('SELECT pg_sleep(60)')"])
def test_without_activities_users_are_let_in_and_it_is_said_what_is_not_done(shop, scratch, watcher, hog):
    shop.succeed("migrate")
    watcher.execute(f"ALTER DATABASE {scratch.alias} SET track_activities = off")
    write_python(shop, "0002_size", HOG.format(hog=hog))
    process = shop.start("migrate")
    try:
        while not watcher.execute(IS_LOCKED).rowcount:
            assert process.poll() is None
        time.sleep(2)  # for which nobody is kept out, so that nothing is ended
        assert process.poll() is None
        started = time.monotonic()
        assert is_let_in(scratch) < 4
        assert time.monotonic() - started > 0.9
    finally:
        process.kill()
        done = finish(process)
    assert done.out.count("track_activities is off for this role,") == 1
