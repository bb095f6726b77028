"""Does a backfill make room for others, and say why?"""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from accounts.models import Skill
from gotong_royong.zero_downtime.backfills import control, ranges
from gotong_royong.zero_downtime.backfills.throttle import REASONS, Facts, Throttle, _advised
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.models import Backfill
from gotong_royong.zero_downtime.operations import RunBackfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import going, until
from tests.zero_downtime.load import load
from tests.zero_downtime.steps import run as run_operations

pytestmark = pytest.mark.once


def ask_throttle(database, **options):
    return Throttle(database.alias, '"skills"', **options).ask()


def test_nothing_holds_it_back_where_it_is_alone(skills):
    assert ask_throttle(skills) == (False, "")


def test_half_speed_while_others_are_at_work(skills, settings):
    with load(conninfo(skills), "SELECT 1"):
        assert ask_throttle(skills) == (False, "1 other session at work: half speed")
        assert ask_throttle(skills, at_full_speed=True) == (False, "")
        settings.ZERO_DOWNTIME_BACKFILL_IGNORE = ["others"]
        assert ask_throttle(skills) == (False, "")


@pytest.mark.once
def test_batches_are_short_while_others_are_at_work(skills, fill, declare, run):
    """Each row takes a millisecond, so that what a batch takes is how many rows it has."""

    def process(self, batch):
        time.sleep(0.001 * len(batch))
        batch.update(description="")

    fill(4_000)
    row = run(name := declare(process=process), at_full_speed=False)
    alone = control.progress(row).batches
    with skills.cursor() as cursor:
        cursor.execute("UPDATE skills SET description = NULL")
    control.retry(row)
    with load(conninfo(skills), "SELECT 1"):
        row = run(name, at_full_speed=False)
    assert control.progress(row).batches > 1.5 * alone  # it would be as many


def test_a_worker_that_begins_is_held_back_too(skills, fill, declare, ask, settings):
    """Each worker of the queue begins anew with each of its jobs."""
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "much to do"
    fill(3_000)
    row = control.get_or_create(declare(), skills.alias)
    for _ in range(3):
        until = time.monotonic() + 0.2
        Worker(row, stop=lambda: time.monotonic() > until).run()  # noqa: B023
    assert (row.status, row.throttle) == ("running", "much to do")
    assert ask("SELECT count(*) FROM written") == 0


def test_the_sessions_of_a_run_are_no_others(skills, fill, declare, settings):
    settings.ZERO_DOWNTIME_BACKFILL_INLINE = 10
    fill(3_000)
    reasons = set()

    def process(self, batch):
        reasons.add(ask_throttle(skills).reason)
        batch.update(description="")

    name = declare(process=process)
    run_operations(
        skills,
        RunBackfill(name, wait=True),
        atomic=False,
    )
    assert reasons == {""}


def test_it_waits_while_somebody_waits_for_a_backfill(skills, fill):
    fill(1)
    parameters = {**conninfo(skills), "autocommit": True}
    with (
        psycopg.connect(**conninfo(skills), application_name="backfill") as ours,
        psycopg.connect(**parameters, application_name="user") as user,
        load(conninfo(skills), "SET lock_timeout = '2s'; SELECT 1"),
    ):
        ours.execute("UPDATE skills SET category = 'x'")
        user.pgconn.send_query(b"UPDATE skills SET category = 'y'")
        deadline = time.monotonic() + 30
        while not (advice := ask_throttle(skills)).wait:
            assert time.monotonic() < deadline, advice
        assert advice.reason == "1 session waits for it"
        assert not Throttle("default", '"skills"').ask().wait  # another database, in which nobody does
        ours.rollback()
        while user.pgconn.get_result():
            pass


def test_the_projects_own_reason(skills, settings):
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "the queue of mails is long"
    assert ask_throttle(skills) == (True, "the queue of mails is long")
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = "tests.zero_downtime.backfills.test_throttle.nothing"
    assert ask_throttle(skills) == (False, "")


def nothing():
    return None


def fails():
    raise TimeoutError("no answer")


@pytest.mark.parametrize(
    ("load", "told"),
    [(fails, "TimeoutError: no answer"), ("nowhere.at.all", "ModuleNotFoundError: No module named 'nowhere'")],
)
def test_a_reason_of_the_project_that_cannot_be_asked_is_one(skills, settings, load, told):
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = load
    assert ask_throttle(skills) == (True, f"ZERO_DOWNTIME_BACKFILL_LOAD cannot be asked: {told}")


ALL = Facts(2, 3, 65.0, 11.0, "autovacuum: VACUUM x (to prevent wraparound)")
EACH = {
    "waiting": (True, "2 sessions wait for it"),
    "replica_lag": (True, "a replica is 65 MB behind, more than 64"),
    "wal_rate": (True, "11 MB of WAL a second, more than 10"),
    "wraparound": (True, "a vacuum against wraparound is at work on the table"),
    "load": (True, "much to do"),
    "autovacuum": (False, "an autovacuum is at work on the table: half speed"),
    "others": (False, "3 other sessions at work: half speed"),
}


def test_what_each_fact_means_and_which_is_the_strongest(settings):
    settings.ZERO_DOWNTIME_BACKFILL_WAL_RATE, settings.ZERO_DOWNTIME_BACKFILL_LOAD = 10, lambda: "much to do"
    told = partial(_advised, alias="default")
    advised = dict(told(ALL)) | dict(told(ALL._replace(vacuum="autovacuum: VACUUM x")))
    assert advised == EACH
    assert tuple(EACH) == REASONS
    assert [name for name, _ in told(ALL)] == [name for name in REASONS if name != "autovacuum"]
    assert list(told(Facts(lag=64.0, wal=10.0))) == [("load", (True, "much to do"))]


def test_each_can_be_switched_off(skills, settings):
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "much to do"
    with load(conninfo(skills), "SELECT 1"):
        assert ask_throttle(skills).reason == "much to do"
        settings.ZERO_DOWNTIME_BACKFILL_IGNORE = {"load"}
        assert ask_throttle(skills).reason == "1 other session at work: half speed"
        settings.ZERO_DOWNTIME_BACKFILL_IGNORE = set(REASONS)
        assert ask_throttle(skills) == (False, "")


def test_what_is_switched_off_is_not_asked(skills, settings):
    asked = []
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: asked.append("load")
    ask_throttle(skills)
    assert asked == ["load"]
    settings.ZERO_DOWNTIME_BACKFILL_IGNORE = {"load"}
    ask_throttle(skills)
    assert asked == ["load"]


def test_what_is_no_reason_cannot_be_switched_off(skills, settings):
    settings.ZERO_DOWNTIME_BACKFILL_IGNORE = ["replica"]
    with pytest.raises(ImproperlyConfigured, match=r"names 'replica', which holds no .* Choose from waiting, "):
        ask_throttle(skills)


def test_sessions_of_the_queue_that_look_for_tasks_are_not_at_work(skills):
    with psycopg.connect(**conninfo(skills), autocommit=True) as queue:
        queue.execute("SELECT 'procrastinate_jobs'")
        assert ask_throttle(skills) == (False, "")
        queue.execute("SELECT 'procrastinates'")
        assert ask_throttle(skills).reason == "1 other session at work: half speed"


def test_who_watches_how_far_it_is_is_not_at_work(skills, declare):
    """An admin page refreshes itself every two seconds, perhaps over a connection that stays open."""
    row = control.get_or_create(declare(), skills.alias)
    with ThreadPoolExecutor(1) as page:
        try:
            page.submit(control.status, row.name, skills.alias).result()
            assert ask_throttle(skills) == (False, "")
            page.submit(Skill.objects.using(skills.alias).count).result()
            assert ask_throttle(skills).reason == "1 other session at work: half speed"
        finally:
            page.submit(lambda: connections[skills.alias].close()).result()


def slowly(self, batch):
    time.sleep(0.003 * len(batch))
    batch.update(description="")


@pytest.mark.once
class TestHeldBack:
    """The project's own function says to wait, for as long as it is wanted."""

    @pytest.fixture
    def held_back(self, skills, fill, declare, settings):
        held = {"reason": "much to do"}
        settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: held["reason"]
        fill(900)
        name = declare()
        with going(name, skills):
            try:
                until(lambda: control.status(name, skills.alias)[0].throttle)
                yield name
            finally:
                held["reason"] = ""

    def test_the_few_rows_of_a_verification_are_held_back_too(self, skills, fill, declare, run, settings):
        fill(900)
        calls = itertools.count()
        settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "much to do" if next(calls) in {1, 2} else ""
        seen = []
        name = declare(process=slowly)
        run(name, at_full_speed=False, show=lambda row, progress: seen.append((progress.rows, row.throttle)))
        assert any(0 < rows < 900 and reason == "much to do" for rows, reason in seen)

    def test_whoever_waits_is_at_it_for_longer_than_a_lease(self, monkeypatch, request, skills):
        monkeypatch.setattr(ranges, "LEASE", 1.0)
        held_back = request.getfixturevalue("held_back")
        time.sleep(1.5)
        assert control.status(held_back, skills.alias)[1].workers == 1

    def test_it_can_be_paused_while_it_waits(self, held_back, skills):
        row = control.get_or_create(held_back, skills.alias)
        paused_at = time.monotonic()
        control.pause(row)
        until(lambda: not control.progress(row).workers)
        assert time.monotonic() - paused_at < ranges.LEASE / 2  # and not only because its lease ran out

    def test_who_takes_over_does_not_say_what_another_one_said(self, skills, fill, declare, run):
        fill(500)
        row = control.get_or_create(declare(process=slowly), skills.alias)
        control.become(row, Backfill.Status.RUNNING, order="physical")
        Backfill.objects.using(skills.alias).update(throttle="what a worker said that was killed")
        told = set()
        run(row.name, show=lambda row, progress: told.add((row.status, row.throttle)))
        assert ("running", "") in told


def test_the_reason_is_shown_while_it_lasts(skills, fill, declare, run, settings):
    fill(3_000)
    reasons, seen = ["too much to do"] * 2, []
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: reasons.pop() if reasons else ""
    name = declare()
    row = run(name, at_full_speed=False, show=lambda row, progress: seen.append(row.throttle))
    assert row.status == Backfill.Status.SUCCEEDED
    assert "too much to do" in seen
    assert control.get_or_create(name, skills.alias).throttle == ""
