"""Is every row done once while others write, move its table, pause it and end its sessions?"""

import random
import threading
import time
from contextlib import suppress

import psycopg
import pytest
from django.db import connections
from django.db.models import Q
from django.db.models.functions import Upper

from gotong_royong.zero_downtime.backfills import control, pool, ranges, verification, worker
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused
from gotong_royong.zero_downtime.models import Backfill, BackfillRange
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import UNDONE
from tests.zero_downtime.load import load

pytestmark = [pytest.mark.once, pytest.mark.slow]

Status = Backfill.Status
# What old code would do: it knows nothing of the new column, or fills it itself. Each statement has rows of its own.
SOME = "(SELECT id FROM skills WHERE name LIKE 'skill%{}' OFFSET floor(random() * 1500) LIMIT 1)"
INSERT = "INSERT INTO skills (name, description) VALUES ('new' || random(), NULL)"
MOVE = f"UPDATE skills SET filler = repeat(md5(random()::text), 6) WHERE id = {SOME.format(1)}"
ACROSS = f"UPDATE skills SET category = CASE WHEN category IS NULL THEN 'a' END WHERE id = {SOME.format(2)}"
DELETE = f"DELETE FROM skills WHERE id = {SOME.format(3)}"
OURSELVES = f"UPDATE skills SET description = upper(name) WHERE description IS NULL AND id = {SOME.format(4)}"

# The trigger's log: whoever filled a row, the backfill or old code, it was NULL before, and was filled once.
WRONG = """
    SELECT count(*) FROM (
        SELECT id FROM written GROUP BY id HAVING count(*) > 1 OR bool_or(was IS NOT NULL OR is_now IS NULL)
    ) AS wrong
"""

TABLES = {
    "plain": "",
    "indexed": "CREATE INDEX ON skills (md5(description))",
    "inherited": """
        CREATE TABLE more (LIKE skills INCLUDING ALL) INHERITS (skills);
        WITH moved AS (DELETE FROM skills WHERE name LIKE '%2' RETURNING *) INSERT INTO more SELECT * FROM moved;
        CREATE TRIGGER log_written AFTER UPDATE OF description ON more FOR EACH ROW EXECUTE FUNCTION log_written()
    """,
    "partitioned": """
        ALTER TABLE skills RENAME TO old;
        CREATE TABLE skills (LIKE old INCLUDING DEFAULTS) PARTITION BY LIST (category);
        CREATE TABLE a PARTITION OF skills FOR VALUES IN ('a');
        CREATE TABLE others PARTITION OF skills DEFAULT;
        INSERT INTO skills SELECT * FROM old;
        CREATE INDEX ON skills (id);
        CREATE TRIGGER log_written AFTER UPDATE OF description ON skills FOR EACH ROW EXECUTE FUNCTION log_written()
    """,
}
DECLARATIONS = {
    "update": {},
    "python": {"process": lambda self, batch: batch.update(description=Upper("name"))},
    "join": {"where": Q(description=None, users=None)},
    "all": {"where": None},
}


@pytest.mark.timeout(400)  # two workers go more slowly the busier the machine is
@pytest.mark.parametrize(
    ("table", "declaration", "order", "workers"),
    [
        *(("plain", "update", "stripes", workers) for workers in (1, 2, 4)),
        *(("indexed", "update", "physical", workers) for workers in (1, 2, 4)),
        ("plain", "python", "physical", 2),
        ("plain", "join", "keys", 2),
        ("plain", "all", "keys", 2),
        ("inherited", "update", "keys", 2),
        ("partitioned", "update", "stripes", 2),
        ("partitioned", "python", "physical", 2),
    ],
)
def test_while_others_insert_update_and_delete(skills, fill, declare, run, ask, table, declaration, order, workers):
    """Two workers go as slowly as one does among others; of ``all``, rows that come in meanwhile are not theirs."""
    fill(20_000)
    if TABLES[table]:
        ask(TABLES[table])
    has_where = declaration != "all"
    writers = [INSERT, MOVE, MOVE, ACROSS, DELETE, *([OURSELVES] if has_where else [])]
    with load(conninfo(skills), *writers) as victims:

        def show(row, progress):
            if row.sweep > 1:  # lest it chases new rows for ever
                victims[0].stop.set()

        name = declare(**DECLARATIONS[declaration])
        row = run(name, workers=workers, at_full_speed=workers != 2, show=show)
        assert (row.status, row.order) == (Status.SUCCEEDED, order)
    assert all(victim.count > 10 for victim in victims)
    if has_where:
        control.retry(row)
        assert run(name).status == Status.SUCCEEDED  # what came in after it had looked
    assert ask(f"{UNDONE} AND (name LIKE 'skill%' OR {has_where})") == ask(WRONG) == 0


def test_rows_to_do_that_keep_coming_are_told_of_and_not_chased_for_ever(skills, fill, declare, run, ask, settings):
    settings.ZERO_DOWNTIME_PATIENCE = 2.0
    fill(100)
    ask("CREATE SEQUENCE numbers")
    trigger = "INSERT INTO skills (name) VALUES ('late ' || nextval('numbers')); RETURN NULL"
    ask(f"CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {trigger}; END $$")
    ask("CREATE TRIGGER more AFTER UPDATE ON skills EXECUTE FUNCTION more()")  # one for each batch
    name, told = declare(), set()
    with pytest.raises(BackfillFailed, match=r"keep coming \(\d+ since it had done all\): let the code that writes"):
        run(name, show=lambda row, progress: told.add(row.throttle))
    assert any("keep coming" in reason for reason in told)
    ask("DROP TRIGGER more ON skills")
    control.retry(control.get_or_create(name, skills.alias))
    assert run(name).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0


def test_sweeps_that_leave_as_much_as_they_find_come_to_an_end(skills, fill, declare, run, ask, monkeypatch):
    monkeypatch.setattr(verification, "LEFT", 4)
    fill(10)
    trigger = "INSERT INTO skills (name) SELECT md5(random()::text) FROM generate_series(1, 4); RETURN NULL"
    ask(f"CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {trigger}; END $$")
    ask("CREATE TRIGGER more AFTER UPDATE ON skills EXECUTE FUNCTION more()")
    with pytest.raises(BackfillFailed, match=r"keep coming \(4 and more in each of 10 sweeps\)"):
        run(declare())


def test_a_table_that_vacuum_full_moves_in_between(skills, fill, declare, ask):
    fill(20_000)
    ask("DELETE FROM skills WHERE name LIKE '%3'")
    name = declare()
    done = threading.Event()

    def go():
        try:
            pool.run(name, skills.alias, workers=2, at_full_speed=True)
        finally:
            connections[skills.alias].close()
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    while not done.is_set():
        ask("VACUUM FULL skills")
        time.sleep(0.1)  # in which somebody else may get a lock
    thread.join()
    row = control.get_or_create(name, skills.alias)
    assert row.status == Status.SUCCEEDED, row.error
    assert ask(UNDONE) == ask(WRONG) == 0


def test_two_operators_pause_and_resume_while_two_workers_are_at_it(skills, fill, declare, ask):
    fill(15_000)
    name, done, effective = declare(), threading.Event(), []

    def operate(seed):
        chance = random.Random(seed)  # noqa: S311
        while not done.is_set():
            for act in (control.pause, control.resume):
                with suppress(BackfillRefused):  # the other was quicker
                    act(control.get_or_create(name, skills.alias))
                    effective.append(seed)
                time.sleep(chance.uniform(0, 0.3))  # long enough for a look at what is left
        connections[skills.alias].close()

    operators = [threading.Thread(target=operate, args=(seed,)) for seed in (1, 2)]
    for operator in operators:
        operator.start()
    try:
        deadline = time.monotonic() + 60
        while pool.run(name, skills.alias, workers=2, at_full_speed=True).status != Status.SUCCEEDED:
            assert time.monotonic() < deadline
    finally:
        done.set()
        for operator in operators:
            operator.join()
    assert set(effective) == {1, 2}
    assert len(effective) > 3
    assert ask(UNDONE) == ask(WRONG) == 0
    assert ask("SELECT count(DISTINCT id) FROM written") == 15_000


def test_one_is_forgotten_at_any_moment_while_two_workers_are_at_it(skills, fill, declare, ask):
    fill(400)
    ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%7')")  # so that rows are set aside
    name, ended = declare(), set()

    def go():
        try:
            ended.add(pool.run(name, skills.alias, workers=2, at_full_speed=True).status)
        except BackfillRefused as error:
            ended.add(str(error).partition(",")[0])
        finally:
            connections[skills.alias].close()

    for moment in range(24):
        ask("UPDATE skills SET description = NULL")
        thread = threading.Thread(target=go)
        thread.start()
        time.sleep(0.012 * (moment % 12))
        control.forget(name, skills.alias)
        thread.join()
        control.forget(name, skills.alias)
    assert ended - {Status.FAILED} == {f"Somebody has taken the backfill {name} back"}


def test_a_zombie_cannot_commit(skills, fill, declare, ask, monkeypatch):
    """A worker that sleeps for longer than its lease finds its range taken, and what it did is undone."""
    fill(5_000)
    name = declare()
    row = control.get_or_create(name, skills.alias)
    one = worker.Worker(row, at_full_speed=True)
    assert one._next()  # begins
    while (part := ranges.claim(skills, row)) is None or part.number == 0:
        if part:
            row.order = "stripes"
            one._verify(part)
        row.refresh_from_db()
    monkeypatch.setattr(ranges, "LEASE", -1.0)
    assert ranges.claim(skills, row) is None  # the lease lasts, and so does our session
    BackfillRange.objects.using(skills.alias).filter(pk=part.pk).update(leased_until="2000-01-01T00:00:00Z")
    taken = ranges.claim(skills, row)
    assert (taken.pk, taken.token) == (part.pk, part.token + 1)
    before = ask("SELECT count(*) FROM written")
    with pytest.raises(worker.LeaseLost):
        one._walk_blocks(part)
    assert ask("SELECT count(*) FROM written") == before


@pytest.mark.parametrize("signal", ["pg_terminate_backend", "pg_cancel_backend"])
def test_somebody_signals_all_sessions_in_the_middle(skills, fill, declare, ask, signal):
    fill(20_000)
    name, done, ended = declare(), threading.Event(), 0

    def go():
        try:
            pool.run(name, skills.alias, at_full_speed=True)
        finally:
            connections[skills.alias].close()
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    with psycopg.connect(**conninfo(skills) | {"dbname": "postgres"}, autocommit=True) as other:
        while not done.wait(0.1) and ended < 5:
            ended += other.execute(
                f"SELECT count({signal}(pid)) FROM pg_stat_activity WHERE application_name = 'backfill' "
                "AND datname = %s",
                [skills.settings_dict["NAME"]],
            ).fetchone()[0]
    thread.join()
    assert ended
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0
