"""Do the workers of the queue take up what is left to them, and what happens without the queue?"""

import re
import subprocess
import sys
import time

import pytest
from django.conf import settings as project

from gotong_royong.zero_downtime.backfills import steering
from gotong_royong.zero_downtime.models import Backfill
from tests.zero_downtime.test_executor import environment

NAME = "accounts.populate_markov_user_ids"
LEFT = "SELECT count(*) FROM users WHERE markov_user_id IS NULL"
FILL = """
    INSERT INTO users (username, email, password_hash) SELECT i, i, repeat('x', 99) FROM generate_series(3001, 200000) i
"""
ENQUEUED = "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'zero_downtime.work_on_backfill'"


def manage(database, *arguments):
    """Run a command where the queue is installed."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env={**environment(database), "BACKFILL_QUEUE": "1"},
        cwd=project.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def worker(database):
    """Let a worker do what is in the queue, and end."""
    return manage(database, "procrastinate", "worker", "--one-shot")


@pytest.fixture
def users(skills, ask):
    ask("ALTER TABLE users DISABLE TRIGGER assign_markov_user_id")
    ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 3000) i")
    steering.forget(NAME, skills.alias)
    steering.find(NAME, skills.alias)  # as a migration leaves it
    return skills


def test_a_worker_takes_up_what_is_left_to_it(users, ask):
    manage(users, "migrate", "procrastinate")
    for action in ("pause", "resume", "pause", "resume"):
        manage(users, "backfill", action, NAME)
    assert ask(ENQUEUED) == 1
    worker(users)
    assert ask(LEFT) == 0
    assert steering.find(NAME, users.alias).status == Backfill.Status.SUCCEEDED


@pytest.mark.once
def test_two_workers_of_the_queue_share_a_backfill(users, ask):
    manage(users, "migrate", "procrastinate")
    ask(FILL)
    environ = {**environment(users), "BACKFILL_QUEUE": "1"}
    command = [sys.executable, "manage.py", "procrastinate", "worker"]
    workers = [subprocess.Popen(command, env=environ, cwd=project.BASE_DIR, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        manage(users, "backfill", "pause", NAME)
        manage(users, "backfill", "resume", NAME)
        while steering.find(NAME, users.alias).status != Backfill.Status.SUCCEEDED:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for each in workers:
            each.terminate()
        told = [each.communicate(timeout=30)[1] for each in workers]
    assert ask(LEFT) == 0
    assert ask("SELECT count(DISTINCT worker) FROM zero_downtime_backfill_range WHERE number > 0") == 2, told


def test_a_worker_that_does_not_know_the_backfill_yet_leaves_it_pending(users, ask):
    manage(users, "migrate", "procrastinate")
    Backfill.objects.using(users.alias).create(name="accounts.of_the_next_release")
    ask(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES "
        "('default', 'zero_downtime.work_on_backfill', '{\"name\": \"accounts.of_the_next_release\"}')"
    )
    assert "No backfill accounts.of_the_next_release is declared" in worker(users).stderr
    assert Backfill.objects.using(users.alias).get(name="accounts.of_the_next_release").status == "pending"


def test_without_the_tables_of_the_queue(users):
    manage(users, "backfill", "pause", NAME)
    done = manage(users, "backfill", "resume", NAME)
    told = rf"{NAME} waits for backfill run {NAME}: the queue cannot be reached \(.* does not exist\). Run migrate if"
    assert re.search(told, done.stderr)
    assert steering.find(NAME, users.alias).status == Backfill.Status.PENDING
