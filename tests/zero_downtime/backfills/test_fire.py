"""Is every row done once while others write, and while workers are killed at any moment?"""

import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from gotong_royong.zero_downtime.backfills import crew, ranges, steering, worker
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused
from gotong_royong.zero_downtime.models import Backfill, BackfillRange
from tests.test_migrations import conninfo
from tests.zero_downtime.backfills.conftest import UNDONE
from tests.zero_downtime.load import load
from tests.zero_downtime.test_executor import environment

pytestmark = pytest.mark.once

Status = Backfill.Status
NAME = "accounts.populate_markov_user_ids"
SOME = "(SELECT id FROM skills WHERE name LIKE 'skill%' OFFSET floor(random() * {}) LIMIT 1)"
# What old code would do: it knows nothing of the new column, or fills it itself.
INSERT = "INSERT INTO skills (name, description) VALUES ('new' || random(), NULL)"
MOVE = f"UPDATE skills SET filler = repeat(md5(random()::text), 6) WHERE id = {SOME.format(4000)}"
DELETE = f"DELETE FROM skills WHERE id = {SOME.format(4000)}"

# The trigger's log: what the backfill wrote, it wrote over NULL, and once for each row.
WRONG = """
    SELECT count(*) FROM (
        SELECT id FROM written GROUP BY id HAVING count(*) > 1 OR bool_or(was IS NOT NULL OR is_now IS NULL)
    ) AS wrong
"""


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("index", [False, True])
def test_while_others_insert_update_and_delete(skills, fill, declare, run, ask, workers, index):
    fill(20_000)
    if index:
        ask("CREATE INDEX ON skills (md5(description))")
    with load(conninfo(skills), INSERT, MOVE, MOVE, DELETE) as victims:
        name = declare()
        row = run(name, workers=workers)
        assert row.status == Status.SUCCEEDED
    assert all(victim.count > 10 for victim in victims)
    steering.retry(row)
    assert run(name).status == Status.SUCCEEDED  # what came in after it had looked
    assert ask(UNDONE) == ask(WRONG) == 0


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
    steering.retry(steering.find(name, skills.alias))
    assert run(name).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0


def test_sweeps_that_leave_as_much_as_they_find_come_to_an_end(skills, fill, declare, run, ask, monkeypatch):
    monkeypatch.setattr(worker, "LEFT", 4)
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
            crew.run(name, skills.alias, workers=2, at_full_speed=True)
        finally:
            connections[skills.alias].close()
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    while not done.is_set():
        ask("VACUUM FULL skills")
        time.sleep(0.1)  # in which somebody else may get a lock
    thread.join()
    row = steering.find(name, skills.alias)
    assert row.status == Status.SUCCEEDED, row.error
    assert ask(UNDONE) == ask(WRONG) == 0


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


def test_two_operators_pause_and_resume_while_two_workers_are_at_it(skills, fill, declare, ask):
    fill(15_000)
    name, done, effective = declare(), threading.Event(), []

    def operate(seed):
        chance = random.Random(seed)  # noqa: S311
        while not done.is_set():
            for steer in (steering.pause, steering.resume):
                with suppress(BackfillRefused):  # the other was quicker
                    steer(steering.find(name, skills.alias))
                    effective.append(seed)
                time.sleep(chance.uniform(0, 0.1))
        connections[skills.alias].close()

    operators = [threading.Thread(target=operate, args=(seed,)) for seed in (1, 2)]
    for operator in operators:
        operator.start()
    try:
        deadline = time.monotonic() + 60
        while crew.run(name, skills.alias, workers=2, at_full_speed=True).status != Status.SUCCEEDED:
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
            ended.add(crew.run(name, skills.alias, workers=2, at_full_speed=True).status)
        except BackfillRefused as error:
            ended.add(str(error).partition(",")[0])
        finally:
            connections[skills.alias].close()

    for moment in range(24):
        ask("UPDATE skills SET description = NULL")
        thread = threading.Thread(target=go)
        thread.start()
        time.sleep(0.012 * (moment % 12))
        steering.forget(name, skills.alias)
        thread.join()
        steering.forget(name, skills.alias)
    assert ended - {Status.FAILED} == {f"Somebody has taken the backfill {name} back"}


def test_a_zombie_cannot_commit(skills, fill, declare, ask, monkeypatch):
    """A worker that sleeps for longer than its lease finds its range taken, and what it did is undone."""
    fill(5_000)
    name = declare()
    row = steering.find(name, skills.alias)
    one = worker.Worker(row, at_full_speed=True)
    assert one._next()  # begins
    while (part := ranges.claim(skills, row)) is None or part.number == 0:
        if part:
            row.order = "stripes"
            one._look(part)
        row.refresh_from_db()
    monkeypatch.setattr(ranges, "LEASE", -1.0)
    assert ranges.claim(skills, row) is None  # the lease lasts, and so does our session
    BackfillRange.objects.using(skills.alias).filter(pk=part.pk).update(leased_until="2000-01-01T00:00:00Z")
    taken = ranges.claim(skills, row)
    assert (taken.pk, taken.token) == (part.pk, part.token + 1)
    before = ask("SELECT count(*) FROM written")
    with pytest.raises(worker.LetGo):
        one._walk_blocks(part)
    assert ask("SELECT count(*) FROM written") == before


def test_the_server_ends_all_sessions_in_the_middle(skills, fill, declare, ask):
    fill(20_000)
    name, done, ended = declare(), threading.Event(), 0

    def go():
        try:
            crew.run(name, skills.alias, at_full_speed=True)
        finally:
            connections[skills.alias].close()
            done.set()

    thread = threading.Thread(target=go)
    thread.start()
    with psycopg.connect(**conninfo(skills) | {"dbname": "postgres"}, autocommit=True) as other:
        while not done.wait(0.1) and ended < 5:
            ended += other.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'backfill' "
                "AND datname = %s",
                [skills.settings_dict["NAME"]],
            ).fetchone()[0]
    thread.join()
    assert ended
    assert steering.find(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0
