"""Which statements are tried again, which may wait for long, and is the session afterwards as it was before?"""

import threading
import time

import psycopg
import pytest
from django.db import migrations

from gotong_royong.zero_downtime.exceptions import BlockedTooLong, LockNotObtained, StepFailed
from gotong_royong.zero_downtime.models import Step
from tests.databases import conninfo, look
from tests.zero_downtime.load import holding, load
from tests.zero_downtime.steps import ask, run

READ = "SELECT id FROM users"
WRITE = "LOCK TABLE users IN ROW EXCLUSIVE MODE"
INDEX = "CREATE INDEX CONCURRENTLY trial ON users (is_staff)"
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'trial'::regclass"
WAITS = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass"
SETTINGS = """
    SELECT array_agg(name || ' = ' || setting ORDER BY name) FROM pg_settings WHERE context IN ('user', 'superuser')
"""


@pytest.fixture
def migrated(copied):
    return copied("tasks")


def test_a_deadlock_is_tried_again(migrated, settings):
    settings.ZERO_DOWNTIME_LOCK_TIMEOUT = 5.0
    ask(migrated, "SELECT 1")
    tries, holds = [], threading.Event()

    def hold_skills_and_want_users():
        with psycopg.connect(**conninfo(migrated)) as other:
            other.execute("SET deadlock_timeout = '20s'; LOCK TABLE skills")
            holds.set()
            other.execute("LOCK TABLE users")

    def hold_users_and_want_skills(apps, editor):
        tries.append(1)
        editor.execute("LOCK TABLE users")
        if len(tries) == 1:
            editor.execute("SET LOCAL deadlock_timeout = '20ms'")
            other.start()
            holds.wait()
            with psycopg.connect(**conninfo(migrated), autocommit=True) as watcher:
                while not watcher.execute(WAITS).rowcount:
                    time.sleep(0.01)
        editor.execute("LOCK TABLE skills")

    other = threading.Thread(target=hold_skills_and_want_users)
    events = []
    step = run(
        migrated,
        migrations.RunPython(hold_users_and_want_skills),
        report=lambda event, **facts: events.append((event, facts)),
    )
    other.join()
    assert (step.status, step.tries) == ("succeeded", 2)
    assert [event for event, _ in events].count("retry") == 1


def test_python_waits_for_locks_no_longer_than_statements(migrated):
    with load(conninfo(migrated), READ) as victims, holding(conninfo(migrated), READ, 1.0, from_first_wait=True):
        step = run(migrated, migrations.RunPython(lambda apps, editor: editor.execute("LOCK TABLE users")))
    assert (step.status, step.tries > 1) == ("succeeded", True)
    assert victims[0].longest < 0.8  # against 1.0 s


def test_a_statement_timeout_does_not_end_a_concurrent_build(migrated):
    with migrated.cursor() as cursor:
        cursor.execute("SET statement_timeout = '1s'")
    with holding(conninfo(migrated), WRITE, 1.6, from_first_wait=True):
        step = run(migrated, migrations.RunSQL(INDEX), atomic=False)
    assert step.lock_wait > 1.1
    assert ask(migrated, IS_VALID) == (True,)
    assert ask(migrated, "SHOW statement_timeout") == ("1s",)


def test_it_is_said_for_whom_a_concurrent_build_waits(migrated):
    events = []

    def told(event, **facts):
        events.append((event, facts))
        if event == "progress" and "(holder, user " in facts["whom"] and facts["sql"] == INDEX:
            over.set()

    with holding(conninfo(migrated), WRITE, 30) as over:
        run(migrated, migrations.RunSQL(INDEX), atomic=False, report=told)
        assert over.is_set(), events


def hold_up(database):
    """Nobody gets users for longer than the patience lasts."""
    return holding(conninfo(database), READ, 30)


@pytest.mark.parametrize("atomic", [True, False])
def test_the_session_is_as_before_after_errors(migrated, settings, atomic):
    settings.ZERO_DOWNTIME_PATIENCE, settings.ZERO_DOWNTIME_BLOCK_BUDGET = 0.2, 0.2
    before = ask(migrated, SETTINGS)
    with hold_up(migrated), pytest.raises(LockNotObtained):
        run(migrated, migrations.RunSQL("LOCK TABLE users" if atomic else "ALTER TABLE users ADD a int"), atomic=atomic)
    assert ask(migrated, SETTINGS) == before
    with pytest.raises(StepFailed):
        run(migrated, migrations.RunSQL("SET LOCAL lock_timeout = '7s'; SELECT 1 / 0"), atomic=atomic)
    assert ask(migrated, SETTINGS) == before
    slow = "ALTER TABLE users ADD COLUMN points int; SELECT pg_sleep(20)"
    with load(conninfo(migrated), READ), pytest.raises(BlockedTooLong):
        run(migrated, migrations.RunSQL(slow), atomic=atomic)
    assert ask(migrated, SETTINGS) == before
    if not atomic:
        with pytest.raises(StepFailed, match="nowhere"):
            run(migrated, migrations.RunSQL("CREATE INDEX CONCURRENTLY x ON nowhere (id)"), atomic=False)
        assert ask(migrated, SETTINGS) == before
    assert Step.objects.using(migrated.alias).filter(status="failed").count() == (3 if atomic else 4)


ODD = ["None", "'1s'", "float('inf')", "float('nan')", "-1", "1e12", "True"]
OTHERS = {
    "KEEP_RUNS": ["-1", "0", "'30'", "1e9", "10**9", "True"],
    "AUTO_ROLLBACK": ["'no'", "None"],
    "BACKFILL_INLINE": ["-1", "'many'"],
    "BACKFILL_IGNORE": ["'others'"],
    "BACKFILL_WAL_RATE": ["-1"],
    "LINT_AFTER": ["['shop']"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OTHERS.items() for value in values])
def test_so_are_other_settings_that_make_no_sense(shop, scratch, name, value):
    assert ". Set it to " in refused(shop, scratch, name, value)


def refused(shop, scratch, name, value):
    """Return the one sentence that is said of a setting, before anything is done."""
    shop.settings(f"ZERO_DOWNTIME_{name} = {value}")
    said = shop.fail("migrate")
    assert said.startswith(f"CommandError: ZERO_DOWNTIME_{name} is ")
    assert said.count("\n") == 1
    assert look(scratch)["columns"] == set()
    return said


NAMES = ["LOCK_TIMEOUT", "BLOCK_BUDGET", "PATIENCE"]


@pytest.mark.parametrize(("name", "value"), [(NAMES[i % 3], value) for i, value in enumerate(ODD)] + [(NAMES[0], "0")])
def test_times_that_are_none_are_refused_before_anything_is_done(shop, scratch, name, value):
    assert "Set it to a number of seconds from 0" in refused(shop, scratch, name, value)
