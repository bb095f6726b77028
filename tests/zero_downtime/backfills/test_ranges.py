"""Does one worker at a time hold a range, for as long as it is at it and no longer?"""

import time

import pytest

from gotong_royong.zero_downtime.backfills import ranges, steering
from gotong_royong.zero_downtime.models import Backfill
from tests.test_migrations import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE, going, until
from tests.zero_downtime.load import holding

Status = Backfill.Status


@pytest.fixture(autouse=True)
def lease(monkeypatch):
    monkeypatch.setattr(ranges, "LEASE", 0.3)


@pytest.fixture
def running(skills, declare):
    """A backfill that is at its first look, which nobody does."""
    row = steering.find(declare(), skills.alias)
    steering.become(row, Status.RUNNING, order="stripes")
    ranges.begin_next_sweep(skills, row)
    row.refresh_from_db()
    return row


def test_a_look_whose_worker_died_is_free_though_its_session_lives_on(skills, running):
    first = ranges.claim(skills, running)
    assert first.number == 0
    assert ranges.claim(skills, running) is None
    assert steering.progress(running).workers == 1
    time.sleep(0.4)
    assert steering.progress(running).workers == 0
    assert ranges.claim(skills, running).token == first.token + 1
    assert not ranges.renew(skills, first)


def test_a_look_that_takes_longer_than_a_lease_is_not_taken_over(skills, fill, declare, ask):
    fill(100)
    name = declare()
    with holding(conninfo(skills), "LOCK TABLE skills", 1.5), going(name, skills):
        until(lambda: steering.look(name, skills.alias)[1].workers)
        for _ in range(5):
            time.sleep(0.2)
            assert steering.look(name, skills.alias)[1].workers == 1
    row = steering.find(name, skills.alias)
    assert row.status == Status.SUCCEEDED
    assert row.ranges.get(sweep=1, number=0).token == 1
    assert ask(UNDONE) == ask(TWICE) == 0


def test_a_range_is_renewed_only_while_it_is_running(skills, running):
    part = ranges.claim(skills, running)
    assert ranges.renew(skills, part)
    steering.pause(running)
    assert not ranges.renew(skills, part)
