"""Is every row done once by workers that are processes, if they are killed at any moment or have wrong clocks?"""

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

from gotong_royong.zero_downtime.backfills import ranges, steering
from gotong_royong.zero_downtime.models import Backfill
from tests.test_migrations import conninfo
from tests.zero_downtime.test_executor import environment

pytestmark = pytest.mark.once

Status = Backfill.Status
NAME = "accounts.populate_markov_user_ids"


@pytest.fixture
def users(skills, ask):
    """Sixty thousand users without what the project's own backfill gives them, and a log of whom it gives it."""
    ask("DROP TRIGGER assign_markov_user_id ON users")
    ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 60000) i")
    ask("CREATE TABLE log (id uuid)")
    ask(
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NULL; END $$"
    )
    ask("CREATE TRIGGER log AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION log()")
    steering.forget(NAME, skills.alias)
    return skills


def each_was_done_once(ask):
    assert ask("SELECT count(*) FROM users WHERE markov_user_id IS DISTINCT FROM 'gotong_royong:' || id") == 0
    assert ask("SELECT count(*) - count(DISTINCT id) FROM log") == 0
    assert ask("SELECT count(DISTINCT id) FROM log") == 60_000


def process(database, **options):
    """Start a process that goes through the project's own backfill."""
    command = [sys.executable, "manage.py", "backfill", "run", NAME]
    return subprocess.Popen(command, **{"env": environment(database), "cwd": settings.BASE_DIR, **options})


def test_workers_killed_at_random_moments(users, ask):
    """Whenever a worker's process is killed, another goes on at once."""
    chance, killed = random.Random(5), 0  # noqa: S311
    crews = [process(users) for _ in range(2)]
    deadline = time.monotonic() + 60
    while (row := steering.find(NAME, users.alias)).status != Status.SUCCEEDED:
        assert time.monotonic() < deadline
        place = chance.randrange(2)
        if row.status == Status.RUNNING and killed < 6:
            time.sleep(chance.uniform(0, 0.1))
            killed += crews[place].poll() is None
            crews[place].send_signal(signal.SIGKILL)
        if crews[place].poll() is not None or killed >= 6:
            crews[place].wait()
            crews[place] = process(users)
        time.sleep(0.05)
    for each in crews:
        assert each.wait(30) in {0, -signal.SIGKILL}
    assert killed
    each_was_done_once(ask)


def test_a_worker_killed_while_it_looks_for_what_is_left_is_not_at_it(users, ask):
    """Its lease is long, for it may read a large table in silence; but its session is gone."""

    def wait_for(workers):
        deadline = time.monotonic() + 30
        while steering.progress(steering.find(NAME, users.alias)).workers != workers:
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
    crews = [process(users, env=clock, stdout=subprocess.PIPE, text=True) for clock in clocks]
    leases = set()
    while any(each.poll() is None for each in crews):
        leases.add(
            ask("SELECT max(leased_until - clock_timestamp()) FROM zero_downtime_backfill_range WHERE number > 0")
        )
        time.sleep(0.02)
    told = "".join(each.communicate()[0] for each in crews)
    assert [each.returncode for each in crews] == [0, 0]
    assert re.fullmatch(r"(.* rows in \d+\.\d s .*\n)+", told)
    assert max(leases - {None}) <= timedelta(seconds=ranges.LEASE)
    assert ask("SELECT max(token) FROM zero_downtime_backfill_range WHERE number > 0") == 1
    each_was_done_once(ask)
