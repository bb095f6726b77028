"""Does a backfill tidy up, wait for a replica that lags, and survive a crash of its server? On servers of its own."""

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.models.functions import Upper

from gotong_royong import embedded
from gotong_royong.zero_downtime.backfills import control
from gotong_royong.zero_downtime.backfills.statements import Blocks
from gotong_royong.zero_downtime.backfills.throttle import Throttle
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.models import Backfill
from gotong_royong.zero_downtime.postgres import programs
from gotong_royong.zero_downtime.postgres.programs import open_way
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import LOG, UNDONE, going, until
from tests.zero_downtime.backfills.test_fire import WRONG

pytestmark = [pytest.mark.once, pytest.mark.slow]
Status = Backfill.Status
LEFT = "SELECT count(*) FROM skills WHERE description IS NULL"


@contextmanager
def served(folder):
    """Run an embedded server on a folder of its own, and stop it in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDDED_POSTGRES_DIR", str(folder))
        entry = embedded.start()
    try:
        yield entry
    finally:
        embedded._leave(data(folder))


def data(folder):
    return folder.resolve() / embedded._version()


def program(name):
    try:
        return embedded.binaries() / name
    except ImproperlyConfigured:  # the tests run on another server
        pytest.skip(f"{name} is missing")


def execute(command, folder):
    owner = folder.stat()
    process = programs.begin(command, (owner.st_uid, owner.st_gid))
    said, _ = process.communicate()
    assert process.returncode == 0, said


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def skills(folder, django_db_setup, django_db_blocker):
    """The tables and the log, on a server of their own."""
    program("initdb")
    with django_db_blocker.unblock(), served(folder / "primary") as entry:
        connections.databases["primary"] = {**connection.settings_dict, **entry, "OPTIONS": {}}
        database = connections["primary"]
        call_command("migrate", database="primary", verbosity=0)
        with database.cursor() as cursor:
            cursor.execute(LOG)
        yield database
        database.close()
        del connections["primary"], connections.databases["primary"]


@pytest.fixture
def replica(skills, folder):
    """A streaming replica of that server, as an autocommitting connection to it."""
    copy, primary = data(folder / "replica"), data(folder / "primary")
    copy.mkdir(parents=True, mode=0o700)
    os.chown(copy, primary.stat().st_uid, primary.stat().st_gid)
    open_way((primary.stat().st_uid, primary.stat().st_gid), copy)
    source = psycopg.conninfo.make_conninfo(**conninfo(skills) | {"dbname": "postgres"})
    options = ["--checkpoint=fast", "--write-recovery-conf", "--no-sync", "--dbname", source, "--pgdata", copy]
    execute([program("pg_basebackup"), *options], primary)
    with (copy / "postgresql.auto.conf").open("a") as file:
        file.write("wal_receiver_status_interval = 1s\n")
    with served(folder / "replica") as entry:
        parameters = {**conninfo(skills), "host": entry["HOST"], "port": entry["PORT"]}
        with psycopg.connect(**parameters, autocommit=True) as standby:
            yield standby


def test_it_waits_for_a_replica_that_lags_and_goes_on_once_that_has_caught_up(
    skills, replica, fill, declare, ask, settings
):
    settings.ZERO_DOWNTIME_BACKFILL_REPLICA_LAG, settings.ZERO_DOWNTIME_BACKFILL_IGNORE = 1, {"others"}
    until(lambda: ask("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL"))  # or nobody lags
    replica.execute("SELECT pg_wal_replay_pause()")
    fill(20_000)
    name = declare()
    with going(name, skills):
        until(lambda: control.get_or_create(name, skills.alias).throttle)
        assert "MB behind, more than 1" in control.get_or_create(name, skills.alias).throttle
        left = ask(LEFT)
        assert left > 0
        time.sleep(1.5)
        assert ask(LEFT) == left
        replica.execute("SELECT pg_wal_replay_resume()")
    row = control.get_or_create(name, skills.alias)
    assert (row.status, row.throttle) == (Status.SUCCEEDED, "")
    assert ask(UNDONE) == ask(WRONG) == 0
    until(lambda: replica.execute(UNDONE).fetchone() == (0,))


SLOWLY = (
    "ALTER SYSTEM SET autovacuum_naptime = '1s'",
    "SELECT pg_reload_conf()",
    """
    ALTER TABLE skills SET (autovacuum_enabled = true, autovacuum_analyze_threshold = 0,
                            autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 100,
                            autovacuum_vacuum_cost_limit = 1)
    """,
)


def test_it_goes_slower_during_an_analyze_of_autovacuum_which_full_speed_ends_if_it_may(skills, ask):
    for statement in (*SLOWLY, "CREATE ROLE onlooker IN ROLE pg_read_all_stats"):
        ask(statement)
    ask("INSERT INTO skills (name) SELECT i FROM generate_series(1, 40000) i")
    who = "SELECT max(pid) FROM pg_stat_progress_analyze WHERE relid = 'skills'::regclass"  # takes two minutes
    until(lambda: ask(who))
    first = ask(who)
    asked = Throttle(skills.alias, "skills").ask()
    assert asked == (False, "an autovacuum is at work on the table: half speed")
    ask("SET ROLE onlooker")
    assert Throttle(skills.alias, "skills", at_full_speed=True).ask() == (False, "")
    ask("RESET ROLE")
    assert ask(who) == first
    assert Throttle(skills.alias, "skills", at_full_speed=True).ask() == (False, "")
    until(lambda: ask(who) != first)  # another one may have begun it again


# Nothing is freed while anybody has written before and not ended, in whichever database of the server.
READING = "EXPLAIN (ANALYZE, WAL) SELECT count(*) FROM skills WHERE ctid >= %s::tid AND ctid < %s::tid"


def test_what_was_changed_is_tidied_up_before_somebody_else_reads_it(skills, fill, declare, ask):
    ask("ALTER SYSTEM SET autovacuum = off")
    ask("SELECT pg_reload_conf()")
    fill(20_000)
    batches = Worker(control.get_or_create(declare(), skills.alias), stop=bool).batches
    step = ask("SELECT pg_relation_size('skills') / 8192") // 5
    part = SimpleNamespace(partition="", lower=0, upper=5 * step)
    for at in range(0, 4 * step, step):
        with transaction.atomic(using=skills.alias):
            batches._prune(part)
            assert sum(batches._slices(part, Blocks(at, at + step, None)))
        batches.changed(part, at, at + step)

    def wal_of_reading(lower, upper):
        with skills.cursor() as cursor:
            cursor.execute(READING, [f"({lower},1)", f"({upper},0)"])
            return "WAL: records=" in "".join(line for (line,) in cursor.fetchall())

    assert not wal_of_reading(0, step)
    assert wal_of_reading(3 * step, 4 * step)


def test_a_server_that_crashes_and_starts_again_in_the_middle(skills, folder, fill, declare, ask):
    fill(40_000)

    def process(self, batch):
        time.sleep(0.02)
        batch.update(description=Upper("name"))

    name = declare(process=process)
    primary = data(folder / "primary")
    restart = [program("pg_ctl"), "restart", "--mode=immediate", "--silent", "--wait", "--pgdata", primary]
    with going(name, skills):
        for share in (0.1, 0.4):
            until(lambda: control.status(name, skills.alias)[1].share > share)  # noqa: B023
            execute([*restart, "--log", primary / "server.log"], primary)
            skills.close()
            assert ask(LEFT) > 0
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0
    assert ask("SELECT count(DISTINCT id) FROM written") == 40_000
