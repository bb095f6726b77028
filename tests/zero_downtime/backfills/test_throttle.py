"""Does a backfill make room for others, and say why?"""

import time

import psycopg
import pytest
from django.db.migrations import RunPython

from gotong_royong.zero_downtime.backfills import inline, steering
from gotong_royong.zero_downtime.backfills.throttle import Throttle, _advice
from gotong_royong.zero_downtime.models import Backfill
from tests.test_migrations import conninfo
from tests.zero_downtime.load import load
from tests.zero_downtime.test_executor import run as run_operations


def look(database, **options):
    return Throttle(database.alias, '"skills"', **options).look()


def test_nothing_holds_it_back_where_it_is_alone(skills):
    assert look(skills) == (False, "")


def test_half_speed_while_others_are_at_work(skills, settings):
    with load(conninfo(skills), "SELECT 1"):
        assert look(skills) == (False, "1 other session at work: half speed")
        assert look(skills, at_full_speed=True) == (False, "")
        settings.ZERO_DOWNTIME_BACKFILL_PACE = False
        assert look(skills) == (False, "")


def test_the_sessions_of_a_run_are_no_others(skills, fill, declare, settings):
    settings.ZERO_DOWNTIME_BACKFILL_INLINE = 10
    fill(3_000)
    reasons = set()

    def process(self, batch):
        reasons.add(look(skills).reason)
        batch.update(description="")

    name = declare(process=process)
    run_operations(
        skills,
        RunPython(lambda apps, _: inline.finish(name, skills, apps.get_model("accounts", "Skill"))),
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
        while not (advice := look(skills)).wait:
            assert time.monotonic() < deadline, advice
        assert advice.reason == "1 session waits for it"
        ours.rollback()
        while user.pgconn.get_result():
            pass


def test_the_projects_own_reason(skills, settings):
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: "the queue of mails is long"
    assert look(skills) == (True, "the queue of mails is long")
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = "tests.zero_downtime.backfills.test_throttle.nothing"
    assert look(skills) == (False, "")


def nothing():
    return None


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ((0, 0, 65.0, 0.0, ""), (True, "a replica is 65 MB behind, more than 64")),
        ((0, 0, 0.0, 11.0, ""), (True, "11 MB of WAL a second, more than 10")),
        ((2, 1, 65.0, 0.0, ""), (True, "2 sessions wait for it")),
        (
            (0, 0, 0.0, 0.0, "autovacuum: VACUUM x (to prevent wraparound)"),
            (True, "a vacuum against wraparound is at work on the table"),
        ),
        ((0, 3, 0.0, 0.0, "autovacuum: VACUUM x"), (False, "an autovacuum is at work on the table: half speed")),
    ],
)
def test_what_each_fact_means(settings, facts, advice):
    settings.ZERO_DOWNTIME_BACKFILL_WAL_RATE = 10
    assert _advice(*facts) == advice


def test_the_reason_is_shown_while_it_lasts(skills, fill, declare, run, settings):
    fill(3_000)
    reasons, seen = ["too much to do"] * 2, []
    settings.ZERO_DOWNTIME_BACKFILL_LOAD = lambda: reasons.pop() if reasons else ""
    name = declare()
    row = run(name, at_full_speed=False, show=lambda row, progress: seen.append(row.throttle))
    assert row.status == Backfill.Status.SUCCEEDED
    assert "too much to do" in seen
    assert steering.find(name, skills.alias).throttle == ""
