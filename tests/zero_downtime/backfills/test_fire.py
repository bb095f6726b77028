"""Is every row done once while others write, and while workers are killed at any moment?"""

import random
import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from gotong_royong.zero_downtime.backfills import crew, ranges, steering, worker
from gotong_royong.zero_downtime.models import Backfill, BackfillRange
from tests.test_migrations import conninfo
from tests.zero_downtime.backfills.conftest import UNDONE
from tests.zero_downtime.load import load
from tests.zero_downtime.test_executor import environment

Status = Backfill.Status
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
    thread.join()
    assert steering.find(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(WRONG) == 0


def test_workers_killed_at_random_moments(skills, fill, ask):
    """Real processes go through the project's own backfill; whenever one is killed, another goes on at once."""
    ask("DROP TRIGGER assign_markov_user_id ON users")
    ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 60000) i")
    ask("CREATE TABLE log (id uuid)")
    ask(
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NULL; END $$"
    )
    ask("CREATE TRIGGER log AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION log()")
    name, chance = "accounts.populate_markov_user_ids", random.Random(5)  # noqa: S311
    steering.forget(name, skills.alias)
    command = [sys.executable, "manage.py", "backfill", "run", name]
    env, killed = environment(skills), 0
    crews = [subprocess.Popen(command, env=env, cwd=settings.BASE_DIR) for _ in range(2)]
    deadline = time.monotonic() + 60
    while (row := steering.find(name, skills.alias)).status != Status.SUCCEEDED:
        assert time.monotonic() < deadline
        place = chance.randrange(2)
        if row.status == Status.RUNNING and killed < 6:
            time.sleep(chance.uniform(0, 0.1))
            killed += crews[place].poll() is None
            crews[place].send_signal(signal.SIGKILL)
        if crews[place].poll() is not None or killed >= 6:
            crews[place].wait()
            crews[place] = subprocess.Popen(command, env=env, cwd=settings.BASE_DIR)
        time.sleep(0.05)
    for each in crews:
        assert each.wait(30) in {0, -signal.SIGKILL}
    assert killed
    assert ask("SELECT count(*) FROM users WHERE markov_user_id IS DISTINCT FROM 'gotong_royong:' || id") == 0
    assert ask("SELECT count(*) - count(DISTINCT id) FROM log") == 0
    assert ask("SELECT count(DISTINCT id) FROM log") == 60_000


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
