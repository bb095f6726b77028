"""Does a run that loses the server, a session or its life end with one sentence, and does the next one finish it?"""

import os
import signal
import time

import psycopg
import pytest

from gotong_royong import embedded
from gotong_royong.zero_downtime.models import Run
from tests.databases import conninfo, look
from tests.zero_downtime.shop import finish

pytestmark = pytest.mark.once

SESSION = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
BUSY = f"{SESSION} AND query LIKE %s"
# The server looks every 4 s whether anybody is there, first a little less than that after the statement began.
JUST_LOOKED = f"{BUSY} AND extract(epoch FROM clock_timestamp() - query_start) %% 4 < 1"
SLEEP = 'migrations.RunSQL("SELECT pg_sleep(60)", migrations.RunSQL.noop)'
AT_WORK = "migrate", "%pg_sleep%"
SHORT = SLEEP.replace("60", "1.5")


def wait_for(watcher, run, question, *values):
    """Return the process that the question is about, as soon as there is one."""
    while not (row := watcher.execute(question, values).fetchone()):
        assert run.poll() is None, finish(run)
        time.sleep(0.02)
    return row[0]


@pytest.fixture
def watcher(scratch):
    with psycopg.connect(**conninfo(scratch), autocommit=True) as session:
        yield session


@pytest.fixture(autouse=True)
def steps(shop):
    shop.write("0002_size", f'column("items", "size"), {SLEEP}')
    shop.write("0003_color", 'column("items", "color")')


def end(watcher, run, name):
    """Let somebody end that session of the run while its second step is at work."""
    wait_for(watcher, run, BUSY, *AT_WORK)
    watcher.execute("SELECT pg_terminate_backend(%s)", [wait_for(watcher, run, SESSION, name)])


def goes_on(shop, scratch):
    """Migrate again, without the sleep; return what the ledger says of the run that was hit, and of its second step."""
    shop.write("0002_size", 'column("items", "size")')
    shop.succeed("migrate")
    assert look(scratch)["columns"] >= {f"items | {name} | integer | False | None" for name in ("size", "color")}
    run = Run.objects.using(scratch.alias).earliest("pk")
    return run.status, run.steps.get(name="0002_size").status


def test_the_session_that_migrates_is_ended(shop, scratch, watcher):
    run = shop.start("migrate")
    end(watcher, run, "migrate")
    done = finish(run)
    assert done.code == 1
    assert done.err == (
        "StepFailed: shop.0002_size failed in operation 2 of 2: OperationalError: terminating connection due to "
        "administrator command\nThe connection to the database was lost. Once it is back, migrate again.\n"
        "What run 1 (migrate) applied before that stays (1 step): rollback takes it back.\n"
    )
    assert goes_on(shop, scratch) == ("failed", "failed")


def test_the_session_of_the_ledger_is_ended(shop, scratch, watcher):
    """Another is opened in its place, which takes the runner's lock again."""
    shop.write("0002_size", f'column("items", "size"), {SHORT}')
    run = shop.start("migrate")
    end(watcher, run, "migrate: ledger")
    done = finish(run)
    assert done.code == 0, done.err
    assert "Run 1 succeeded: 3 steps" in done.out
    assert goes_on(shop, scratch) == ("succeeded", "succeeded")


def test_the_session_of_the_watchdog_is_ended(shop, scratch, watcher):
    """It opens another one, and goes on watching."""
    run = shop.start("migrate")
    end(watcher, run, "migrate: watchdog")
    with psycopg.connect(**conninfo(scratch), autocommit=True) as victim:
        victim.execute("SELECT id FROM items")  # which waits until the watchdog ends the step
    done = finish(run)
    assert done.code == 1
    assert "AccessExclusiveLock on table items, which blocks reads and writes: 1 session waited" in done.err
    assert goes_on(shop, scratch) == ("failed", "failed")


def test_nothing_runs_unwatched(shop, scratch, watcher):
    run = shop.start("migrate")
    wait_for(watcher, run, BUSY, *AT_WORK)
    with psycopg.connect(**{**conninfo(scratch), "dbname": "postgres"}, autocommit=True) as elsewhere:
        elsewhere.execute(f"ALTER DATABASE {scratch.alias} ALLOW_CONNECTIONS false")
        end(watcher, run, "migrate: watchdog")
        done = finish(run)
        elsewhere.execute(f"ALTER DATABASE {scratch.alias} ALLOW_CONNECTIONS true")
    assert done.code == 1
    assert "Unwatched: shop.0002_size was stopped in operation 2 of 2. The watchdog's session was lost" in done.err
    assert "is not currently accepting connections" in done.err
    assert goes_on(shop, scratch) == ("failed", "failed")


def test_the_next_run_waits_for_the_statement_of_a_killed_one(shop, scratch, watcher):
    """The server notices within the block budget that nobody is there any more, and lets everybody in."""
    shop.settings("ZERO_DOWNTIME_BLOCK_BUDGET = 4\n")
    run = shop.start("migrate")
    wait_for(watcher, run, BUSY, *AT_WORK)
    shop.write("0002_size", 'column("items", "size")')
    following = shop.start("migrate")
    while not (line := following.stdout.readline()).startswith("Waiting for run 1 (migrate) by "):
        assert line, finish(following)
    wait_for(watcher, run, JUST_LOOKED, *AT_WORK)
    run.kill()
    started = time.monotonic()
    finish(run)
    done = finish(following)
    watcher.execute("SELECT id FROM items")
    assert time.monotonic() - started < 20  # against 60 s
    assert done.code == 0, done.err
    assert done.out.count("Waiting for the last statement of a run that was killed: process ") == 1
    assert "Found run 1 (migrate) by " in done.out
    assert goes_on(shop, scratch) == ("died", "died")


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server of its own."""
    monkeypatch.setenv("EMBEDDED_POSTGRES_DIR", str(tmp_path / "pg"))
    database = embedded.start()
    (data,) = {file.parent for file in (tmp_path / "pg").glob("*/postmaster.pid")}
    yield database, data
    embedded._leave(data)


def test_the_server_goes_down_and_comes_back(shop, server):
    database, data = server
    address = {"host": database["HOST"], "port": database["PORT"], "user": database["USER"], "dbname": database["NAME"]}
    shop.address = "postgresql://{user}@{}:{port}/{dbname}".format(address["host"].replace("/", "%2F"), **address)
    run = shop.start("migrate")
    with psycopg.connect(**address, autocommit=True) as watcher:
        wait_for(watcher, run, BUSY, *AT_WORK)
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)  # pg_ctl stop --mode=immediate
    done = finish(run)
    assert done.code == 1
    assert done.err.startswith("StepFailed: shop.0002_size failed in operation 2 of 2: OperationalError: ")
    assert "\nThe connection to the database was lost. Once it is back, migrate again.\n" in done.err
    said = shop.fail("migrate")
    assert said.startswith("CommandError: cannot connect to database gotong_royong on ")
    embedded.start()
    shop.write("0002_size", 'column("items", "size")')
    out = shop.succeed("migrate")
    assert "Found run 1 (migrate) by " in out
    assert "Applying shop.0003_color... OK" in out
