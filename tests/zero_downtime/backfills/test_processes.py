"""Is every row done once by workers that are processes, if they are killed at any moment or have wrong clocks?"""

import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from gotong_royong.zero_downtime.backfills import control, pool, ranges
from gotong_royong.zero_downtime.models import Backfill
from tests.databases import conninfo, url
from tests.zero_downtime.load import load
from tests.zero_downtime.steps import environment

pytestmark = [pytest.mark.once, pytest.mark.slow]

Status = Backfill.Status
NAME = "accounts.populate_markov_user_ids"
KILLS = 30
MORE = "INSERT INTO users (username, email, password_hash) SELECT random(), random(), '!' FROM generate_series(1, {})"


@pytest.fixture
def users(skills, ask):
    """Sixty thousand users without what the project's own backfill gives them, and a log of whom it gives it."""
    ask("DROP TRIGGER assign_markov_user_id ON users")
    ask(MORE.format(60_000))
    ask("CREATE TABLE log (id uuid)")
    ask(
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NULL; END $$"
    )
    ask("CREATE TRIGGER log AFTER UPDATE OF markov_user_id ON users FOR EACH ROW EXECUTE FUNCTION log()")
    control.forget(NAME, skills.alias)
    return skills


def each_was_done_once(ask):
    assert ask("SELECT count(*) FROM users WHERE markov_user_id IS DISTINCT FROM 'gotong_royong:' || id") == 0
    assert ask("SELECT count(*) - count(DISTINCT id) FROM log") == 0
    assert ask("SELECT count(*) FROM (SELECT id FROM users EXCEPT SELECT id FROM log) AS missing") == 0


def process(database, **options):
    """Start a process that goes through the project's own backfill."""
    command = [sys.executable, "manage.py", "backfill", "run", NAME]
    return subprocess.Popen(command, **{"env": environment(database), "cwd": settings.BASE_DIR, **options})


# What code does that knows nothing of the column; each statement has rows of its own.
SOME = "(SELECT id FROM users WHERE username LIKE '%{}' OFFSET floor(random() * 1000) LIMIT 1)"
WRITERS = (
    MORE.format(1),
    f"UPDATE users SET password_hash = repeat(md5(random()::text), 6) WHERE id = {SOME.format(1)}",
    f"DELETE FROM users WHERE id = {SOME.format(2)}",
)


def exit_code(process):
    process.join(60)
    return process.exitcode


def work(alias, entry):
    """Go through the project's own backfill in a fork of a process that has Django ready."""
    connections.databases[alias] = entry
    ranges.BLOCKS = 128
    pool.run(NAME, alias)


@pytest.fixture
def fork(users, monkeypatch):
    """Starts such a fork; what has not ended with the test is killed."""
    monkeypatch.setenv("DATABASE_URL", url(users))  # lest it look for a server of its own
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gotong_royong.wsgi", __name__])
    forks = []

    def fork():
        forks.append(context.Process(target=work, args=(users.alias, users.settings_dict)))
        forks[-1].start()
        return forks[-1]

    yield fork
    for process in forks:
        process.kill()
        process.join()


def test_workers_killed_many_times_while_others_write(users, fork, ask):
    """One of four after the other is killed at a random moment, and another comes in its place at once."""
    chance, ended = random.Random(5), []  # noqa: S311
    with load(conninfo(users), *WRITERS) as victims:
        workers = [fork() for _ in range(4)]
        while ended.count(-signal.SIGKILL) < KILLS:
            time.sleep(chance.uniform(0, 0.1))
            killed = workers.pop(chance.randrange(4))
            killed.kill()
            ended.append(exit_code(killed))
            row = control.get_or_create(NAME, users.alias)
            if row.status == Status.SUCCEEDED:  # before all were killed
                ask(MORE.format(20_000))
                control.retry(row)
            workers.append(fork())
    assert all(victim.count > 10 for victim in victims)
    assert ask("SELECT max(token) FROM zero_downtime_backfill_range") > 1  # some had a range
    assert {exit_code(worker) for worker in workers} == {0}
    assert set(ended) <= {0, -signal.SIGKILL}
    control.retry(control.get_or_create(NAME, users.alias))
    assert exit_code(fork()) == 0  # what came in after it had looked
    each_was_done_once(ask)


def test_a_worker_killed_while_it_looks_for_what_is_left_is_not_at_it(users, ask):
    """Its lease is long, for it may read a large table in silence; but its session is gone."""

    def wait_for(workers):
        deadline = time.monotonic() + 30
        while control.progress(control.get_or_create(NAME, users.alias)).workers != workers:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with psycopg.connect(**conninfo(users)) as other:
        other.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        worker = process(users)
        wait_for(1)
        worker.kill()
        worker.wait()
    wait_for(0)
    assert process(users).wait(60) == 0
    each_was_done_once(ask)


# What Python imports before all else: the clocks of the machine are wrong by so many seconds.
SKEW = """
import datetime, os, sys, time

class Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)

right = time.time
time.time = lambda: right() + float(os.environ["SKEW"])
datetime.datetime = Skewed
"""


def test_the_clocks_of_the_workers_do_not_matter(users, ask, tmp_path):
    """One is two days fast and one two days slow: leases are the server's, so neither takes the other for dead."""
    (tmp_path / "sitecustomize.py").write_text(SKEW)
    day, now = 86_400, "import django.utils.timezone; print(django.utils.timezone.now().timestamp())"
    skewed = {**environment(users), "PYTHONPATH": str(tmp_path)}
    clocks = [{**skewed, "SKEW": str(skew)} for skew in (-2 * day, 2 * day)]
    for clock in clocks:
        assert abs(float(subprocess.check_output([sys.executable, "-c", now], env=clock)) - time.time()) > day
    pools = [process(users, env=clock, stdout=subprocess.PIPE, text=True) for clock in clocks]
    leases = set()
    while any(each.poll() is None for each in pools):
        leases.add(
            ask("SELECT max(leased_until - clock_timestamp()) FROM zero_downtime_backfill_range WHERE number > 0")
        )
        time.sleep(0.02)
    told = "".join(each.communicate()[0] for each in pools)
    assert [each.returncode for each in pools] == [0, 0]
    assert re.fullmatch(r"(.* rows in \d+\.\d s .*\n)+", told)
    assert max(leases - {None}) <= timedelta(seconds=ranges.LEASE)
    assert ask("SELECT max(token) FROM zero_downtime_backfill_range WHERE number > 0") == 1
    each_was_done_once(ask)
