"""Does a verification let others in, and end when it is told to?"""

import itertools

import psycopg
import pytest
from django.db import models
from django.db.models import Q

from gotong_royong.zero_downtime.backfills import batches, control, pool, throttle, verification
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.models import Backfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE, going, in_jobs, until
from tests.zero_downtime.load import load

pytestmark = [pytest.mark.once, pytest.mark.slow]

Status = Backfill.Status
VERIFIES = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'backfill' AND backend_xmin IS NOT NULL
"""


class IsToDo(models.Func):
    function, template = "is_to_do", "%(function)s(skills.description)"
    output_field = models.BooleanField()


@pytest.fixture
def take(ask):
    """Let a ``where`` take so many seconds for each row."""

    def take(seconds):
        body = f"BEGIN PERFORM pg_sleep({seconds}); RETURN description IS NULL; END"
        ask(f"CREATE OR REPLACE FUNCTION is_to_do(description text) RETURNS boolean LANGUAGE plpgsql AS $$ {body} $$")
        return Q(IsToDo())

    return take


@pytest.fixture
def fill_and_do(fill, ask):
    """Fill the table with rows of which none is to do, so that a verification has to read all of it."""

    def fill_and_do(count):
        fill(count)
        ask("UPDATE skills SET description = upper(name)")

    return fill_and_do


@pytest.fixture
def asked_often(monkeypatch):
    """Ask more often than each second whether there is a reason to go slower."""
    monkeypatch.setattr(throttle, "ASK_EVERY", 0.1)
    monkeypatch.setattr(throttle, "WAIT", 0.05)


def test_it_goes_in_slices(skills, fill_and_do, declare, take, ask):
    fill_and_do(1_000)
    ask("VACUUM FULL skills")
    asked, row = [], control.get_or_create(declare(where=take(0.001)), skills.alias)
    ended = Worker(row, stop=lambda: asked.append(0), target=0.05).run()
    assert ended.status == Status.SUCCEEDED
    assert len(asked) > 15


@pytest.mark.usefixtures("asked_often")
def test_one_in_slices_goes_on_though_there_is_a_reason_to_wait_now_and_then(
    skills, fill_and_do, declare, take, ask, settings
):
    fill_and_do(2_000)
    ask("VACUUM FULL skills")
    calls = itertools.count(1)
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "" if next(calls) % 8 else "much to do"
    row = control.get_or_create(declare(where=take(0.001)), skills.alias)
    with load(conninfo(skills), "SELECT 1"):
        assert in_jobs(row, 0.5) < 5
    assert row.status == Status.SUCCEEDED
    assert next(calls) > 8


@pytest.mark.usefixtures("asked_often")
def test_a_reason_of_the_project_that_fails_in_a_slice_is_one_to_wait(
    skills, fill_and_do, declare, take, ask, settings
):
    fill_and_do(1_000)
    failed = []

    def fails():
        if skills.in_atomic_block and not failed:
            failed.append(True)
            ask("SELECT 1 / 0")

    settings.ZERO_DOWNTIME_BACKFILL_LOAD = fails
    row = control.get_or_create(declare(where=take(0.001)), skills.alias)
    with load(conninfo(skills), "SELECT 1"):
        assert Worker(row).run().status == Status.SUCCEEDED
    assert failed


@pytest.mark.parametrize("joins", [False, True], ids=["in slices", "in one statement"])
def test_it_may_take_longer_than_a_transaction_of_the_role(
    skills, fill_and_do, declare, take, run, settings, monkeypatch, joins
):
    if skills.pg_version < 170000:
        pytest.skip(f"PostgreSQL {skills.pg_version // 10000} knows no transaction_timeout")
    settings.ZERO_DOWNTIME_PATIENCE = 5.0
    fill_and_do(1_000)
    name = declare(where=take(0.003) & (Q(users__isnull=True) if joins else Q()))
    with load(conninfo(skills), "SELECT 1"):
        monkeypatch.setitem(skills.settings_dict, "OPTIONS", {"options": "-c transaction_timeout=1000"})
        assert run(name, at_full_speed=False).status == Status.SUCCEEDED


@pytest.mark.parametrize("joins", [False, True], ids=["in slices", "in one statement"])
def test_pausing_ends_it(skills, fill_and_do, declare, take, ask, joins):
    """It would take longer than its thread is waited for."""
    fill_and_do(3_000)
    name = declare(where=take(0.05) & (Q(users__isnull=True) if joins else Q()))
    with load(conninfo(skills), "SELECT 1"), going(name, skills, workers=1):
        until(lambda: ask(f"{VERIFIES} AND query LIKE '%is_to_do%'"))
        control.pause(control.get_or_create(name, skills.alias))
    row, progress = control.status(name, skills.alias)
    assert (row.status, progress.workers) == (Status.PAUSED, 0)


def test_who_waits_for_the_table_is_let_in(skills, fill, declare, take, ask):
    fill(3_000)
    name = declare(where=take(0.1))
    with load(conninfo(skills), "SELECT 1"), going(name, skills):
        until(lambda: ask(VERIFIES))
        with psycopg.connect(**conninfo(skills)) as user:
            user.execute("LOCK TABLE skills")  # in seconds, not minutes
            take(0)
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(TWICE) == 0


@pytest.mark.parametrize("at_full_speed", [False, True])
@pytest.mark.parametrize("joins", [False, True], ids=["physical", "keys"])
def test_ctrl_c_ends_it(skills, fill, declare, take, ask, joins, at_full_speed):
    """It would take longer than a test may."""
    fill(100)
    name = declare(where=take(600) & (Q(users__isnull=True) if joins else Q()))

    def show(row, progress):
        if ask(VERIFIES):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(name, skills.alias, workers=2, at_full_speed=at_full_speed, show=show)
    assert not ask(VERIFIES)
    row, progress = control.status(name, skills.alias)
    assert (row.status, progress.workers) == (Status.RUNNING, 0)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE skills ALTER filler TYPE varchar(200) USING left(filler, 150)",
        "ALTER TABLE skills SET (fillfactor = 10); ALTER TABLE skills ALTER filler TYPE varchar(200)",
    ],
    ids=["rewritten", "grown"],
)
def test_it_sees_what_is_in_a_table_that_somebody_rewrites(skills, fill, declare, ask, change):
    """To a snapshot from before that, the table is empty."""
    fill(3_000)
    name = declare()
    with psycopg.connect(**conninfo(skills)) as user, load(conninfo(skills), "SELECT 1"):
        user.execute(change)
        with going(name, skills):
            until(lambda: ask("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'skills'::regclass"))
            user.commit()
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(TWICE) == 0


def test_it_says_that_the_table_is_locked(skills, fill, declare, ask, monkeypatch):
    monkeypatch.setattr(batches, "IN_QUEUE", 0.1)
    monkeypatch.setattr(verification, "IN_QUEUE", 0.1)
    fill(100)
    name = declare()
    with psycopg.connect(**conninfo(skills)) as user:
        user.execute("LOCK TABLE skills")
        with going(name, skills):
            until(lambda: control.get_or_create(name, skills.alias).throttle == "somebody keeps the table locked")
            user.rollback()
    row = control.get_or_create(name, skills.alias)
    assert (row.status, row.throttle) == (Status.SUCCEEDED, "")
    assert ask(UNDONE) == ask(TWICE) == 0


def test_a_job_of_the_queue_that_is_held_back_all_the_time_does_not_begin_it(skills, fill, declare, ask, settings):
    fill(1_000)
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "busy"
    row = control.get_or_create(declare(), skills.alias)
    asked = []
    job = Worker(row, stop=lambda: asked.append(0) or (len(asked) > 3 and not job.verifies))
    assert job.run().status == Status.RUNNING
    assert (row.throttle, row.ranges.get().number, ask(UNDONE)) == ("busy", 0, 1_000)
