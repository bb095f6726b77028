"""Do the workers of the queue take up what is left to them, and what happens without the queue?"""

import re
import subprocess
import sys
import time

import pytest
from django.conf import settings as project

from gotong_royong.zero_downtime.backfills import control
from gotong_royong.zero_downtime.models import Backfill
from tests import forks
from tests.conftest import _database
from tests.databases import conninfo
from tests.zero_downtime.load import load
from tests.zero_downtime.steps import environment

pytestmark = [pytest.mark.once, pytest.mark.slow]

NAME = "accounts.populate_markov_user_ids"
LEFT = "SELECT count(*) FROM users WHERE markov_user_id IS NULL"
FILL = """
    INSERT INTO users (username, email, password_hash) SELECT i, i, repeat('x', 99) FROM generate_series(3001, 200000) i
"""
ENQUEUED = "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'zero_downtime.work_on_backfill'"


def manage(database, *arguments, **environ):
    """Run a command where the queue is installed."""
    done = forks.manage(*arguments, env={**environment(database), "BACKFILL_QUEUE": "1", **environ})
    assert done.returncode == 0, done.stderr
    return done


def worker(database):
    """Let a worker do what is in the queue, and end."""
    return manage(database, "procrastinate", "worker", "--one-shot")


@pytest.fixture
def users(skills, ask):
    ask("ALTER TABLE users DISABLE TRIGGER assign_markov_user_id")
    ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 3000) i")
    control.forget(NAME, skills.alias)
    control.get_or_create(NAME, skills.alias)  # as a migration leaves it
    return skills


def test_a_worker_takes_up_what_is_left_to_it(users, ask):
    manage(users, "migrate", "procrastinate")
    for action in ("pause", "resume", "pause", "resume"):
        manage(users, "backfill", action, NAME)
    assert ask(ENQUEUED) == 1
    worker(users)
    assert ask(LEFT) == 0
    assert control.get_or_create(NAME, users.alias).status == Backfill.Status.SUCCEEDED


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
        while control.get_or_create(NAME, users.alias).status != Backfill.Status.SUCCEEDED:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for each in workers:
            each.terminate()
        told = [each.communicate(timeout=30)[1] for each in workers]
    assert ask(LEFT) == 0
    assert ask("SELECT count(DISTINCT worker) FROM zero_downtime_backfill_range WHERE number > 0") == 2, told


def slow(ask, seconds):
    """Let each batch take so long, at least."""
    body = f"BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END"
    ask(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    ask("CREATE TRIGGER slow AFTER UPDATE ON users EXECUTE FUNCTION slow()")


def test_a_job_ends_with_its_slice_of_time_and_the_next_one_goes_on(users, ask):
    manage(users, "migrate", "procrastinate")
    slow(ask, 0.2)
    program = (
        "from django.core.management import call_command; from gotong_royong.zero_downtime import tasks\n"
        f"tasks.SLICE = 0.1; tasks.nudge(name={NAME!r}, alias='default')\n"
        "call_command('procrastinate', 'worker', '--one-shot')"
    )
    manage(users, "shell", "-c", program)
    assert control.get_or_create(NAME, users.alias).status == Backfill.Status.SUCCEEDED
    assert ask(LEFT) == 0
    assert ask(f"{ENQUEUED} AND status = 'succeeded'") == ask(ENQUEUED) > 3


def test_a_look_for_what_is_left_may_take_longer_than_a_slice(users, ask):
    """While others are at work it goes in slices of its own, after each of which it could be left."""
    manage(users, "migrate", "procrastinate")
    program = (
        "from django.core.management import call_command; from gotong_royong.zero_downtime import tasks\n"
        "from gotong_royong.zero_downtime.backfills import batches\n"
        f"tasks.SLICE, batches.GAP = 0.2, 40; tasks.nudge(name={NAME!r}, alias='default')\n"
        "call_command('procrastinate', 'worker', '--one-shot')"
    )
    with load(conninfo(users), "SELECT 1"):
        manage(users, "shell", "-c", program)
    assert control.get_or_create(NAME, users.alias).status == Backfill.Status.SUCCEEDED
    assert ask(LEFT) == 0


@pytest.mark.parametrize(
    ("options", "seconds"),
    [((), 28), (("--shutdown-graceful-timeout", "1"), 15)],  # a deploy gives a process 30, and a slice is 20
    ids=["for as long as a job takes", "at once"],
)
def test_a_worker_that_is_to_stop_does_though_there_is_more_to_do(users, ask, options, seconds):
    manage(users, "migrate", "procrastinate")
    ask(FILL)
    slow(ask, 0.3)
    manage(users, "backfill", "pause", NAME)
    manage(users, "backfill", "resume", NAME)
    command = [sys.executable, "manage.py", "procrastinate", "worker", *options]
    environ = {**environment(users), "BACKFILL_QUEUE": "1"}
    with subprocess.Popen(command, env=environ, cwd=project.BASE_DIR, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not control.status(NAME, users.alias)[1].rows:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            process.wait(seconds)
        finally:
            process.kill()
    assert ask(LEFT) > 0
    row, progress = control.status(NAME, users.alias)
    assert (row.status, progress.workers) == (Backfill.Status.RUNNING, 0)
    assert ask(f"{ENQUEUED} AND status = 'todo'") == 1


def test_a_job_of_what_was_taken_back_meanwhile_starts_nothing(users, ask):
    manage(users, "migrate", "procrastinate")
    manage(users, "backfill", "pause", NAME)
    manage(users, "backfill", "resume", NAME)
    control.forget(NAME, users.alias)
    assert f"{NAME} is not started" in worker(users).stderr
    assert NAME not in control.names(users.alias)
    assert ask(LEFT) == 3_000


DATABASES = """
from tests.settings import *
second = {**DATABASES["default"], "NAME": %r}
DATABASES["gone"] = {**second, "HOST": "127.0.0.1", "PORT": "1"}
DATABASES["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
DATABASES["replica"] = {**second, "OPTIONS": {"options": "-c default_transaction_read_only=on"}}
DATABASES["second"] = second
"""


def test_the_backfills_of_all_databases_are_taken_up(users, ask, migrated_database, tmp_path):
    manage(users, "migrate", "procrastinate")
    with _database(migrated_database) as second:
        control.retry(control.get_or_create(NAME, second.alias))
        second.close()
        (tmp_path / "trial.py").write_text(DATABASES % second.settings_dict["NAME"])
        trial = {"DJANGO_SETTINGS_MODULE": "trial", "PYTHONPATH": str(tmp_path)}
        program = "from gotong_royong.zero_downtime import tasks; tasks.look_for_backfills(0)"
        told = manage(users, "shell", "-c", program, **trial).stderr
        assert told.count("cannot be read") == 1
        assert "The backfills of database gone cannot be read: OperationalError: " in told
        assert ask("SELECT string_agg(args ->> 'alias', ' ' ORDER BY id) FROM procrastinate_jobs") == "default second"
        manage(users, "procrastinate", "worker", "--one-shot", **trial)
        assert control.get_or_create(NAME, second.alias).status == Backfill.Status.SUCCEEDED


def test_a_worker_that_does_not_know_the_backfill_yet_leaves_it_pending(users, ask):
    manage(users, "migrate", "procrastinate")
    Backfill.objects.using(users.alias).create(name="accounts.of_the_next_release")
    ask(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, args) VALUES "
        "('default', 'zero_downtime.work_on_backfill', '{\"name\": \"accounts.of_the_next_release\"}')"
    )
    assert "No backfill accounts.of_the_next_release is declared" in worker(users).stderr
    row = Backfill.objects.using(users.alias).get(name="accounts.of_the_next_release")
    assert row.status == "pending"
    assert re.search(r", process \d+, .*: No backfill accounts.of_the_next_release is declared", row.throttle)


def test_a_worker_whose_models_it_does_not_fit_leaves_it_pending(users, ask):
    manage(users, "migrate", "procrastinate")
    program = (
        "from django.core.management import call_command; from django.db.models import Q\n"
        "from accounts.backfills import PopulateMarkovUserIDs; from gotong_royong.zero_downtime import tasks\n"
        f"PopulateMarkovUserIDs.where = Q(nickname=None); tasks.nudge(name={NAME!r}, alias='default')\n"
        "call_command('procrastinate', 'worker', '--one-shot')"
    )
    manage(users, "shell", "-c", program)
    row = control.get_or_create(NAME, users.alias)
    assert row.status == "pending"
    told = rf", process \d+, .*: {NAME} does not fit the models of .*: Cannot resolve keyword 'nickname'"
    assert re.search(told, row.throttle)
    assert ask(LEFT) == 3_000


def test_no_worker_at_all_is_refused(users, ask, tmp_path):
    manage(users, "migrate", "procrastinate")
    manage(users, "backfill", "pause", NAME)
    manage(users, "backfill", "resume", NAME)
    (tmp_path / "trial.py").write_text("from tests.settings import *\nZERO_DOWNTIME_BACKFILL_WORKERS = 0\n")
    trial = {"DJANGO_SETTINGS_MODULE": "trial", "PYTHONPATH": str(tmp_path)}
    told = manage(users, "procrastinate", "worker", "--one-shot", **trial).stderr
    assert "ZERO_DOWNTIME_BACKFILL_WORKERS is 0. Set it to a whole number from 1 on. To run backfills" in told
    assert ask(LEFT) == 3_000


def test_without_the_tables_of_the_queue(users):
    manage(users, "backfill", "pause", NAME)
    done = manage(users, "backfill", "resume", NAME)
    told = rf"{NAME} waits for backfill run {NAME}: the queue cannot be reached \(.* does not exist\). Run migrate if"
    assert re.search(told, done.stderr)
    assert f"has no tables, so it waits for backfill run {NAME}, or for migrate and a worker" in done.stdout
    manage(users, "migrate", "procrastinate")
    manage(users, "backfill", "pause", NAME)
    done = manage(users, "backfill", "resume", NAME)
    assert f"{NAME} is pending again: a worker of the queue takes it up, or backfill run {NAME}.\n" == done.stdout
    assert control.get_or_create(NAME, users.alias).status == Backfill.Status.PENDING
