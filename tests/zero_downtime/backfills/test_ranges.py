"""Does one worker at a time hold a range, for as long as it is at it and no longer?"""

import time

import psycopg
import pytest

from gotong_royong.zero_downtime.backfills import control, ranges
from gotong_royong.zero_downtime.models import Backfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE, going, until

Status = Backfill.Status

# A lease runs out by a statement, so that none does by chance where the machine stands still.
EXPIRE = """
    WITH expired AS (
        UPDATE zero_downtime_backfill_range SET leased_until = clock_timestamp()
        WHERE finished_at IS NULL {} RETURNING id
    )
    SELECT count(*) FROM expired
"""
IN_A_LOOK = "AND backend IN (SELECT pid FROM pg_locks WHERE relation = 'skills'::regclass AND NOT granted)"


@pytest.fixture
def running(skills, declare):
    """A backfill that is at its first look, which nobody does."""
    row = control.get_or_create(declare(), skills.alias)
    control.become(row, Status.RUNNING, order="stripes")
    ranges.begin_next_sweep(skills, row)
    row.refresh_from_db()
    return row


def test_a_look_whose_worker_died_is_free_though_its_session_lives_on(skills, running, ask):
    first = ranges.claim(skills, running)
    assert first.number == 0
    assert ranges.claim(skills, running) is None
    assert control.progress(running).workers == 1
    assert ask(EXPIRE.format("")) == 1
    assert control.progress(running).workers == 0
    assert ranges.claim(skills, running).token == first.token + 1
    assert not ranges.renew(skills, first)


def test_a_look_that_takes_longer_than_a_lease_is_not_taken_over(skills, fill, declare, ask):
    fill(100)
    name = declare()
    with psycopg.connect(**conninfo(skills)) as holder:
        holder.execute("LOCK TABLE skills")
        with going(name, skills):
            try:
                until(lambda: ask(EXPIRE.format(IN_A_LOOK)))
                for _ in range(5):
                    time.sleep(0.2)
                    row, progress = control.status(name, skills.alias)
                    assert progress.workers == row.ranges.get(sweep=1, number=0).token == 1
            finally:
                holder.rollback()
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert ask(UNDONE) == ask(TWICE) == 0


def test_a_range_is_renewed_only_while_it_is_running(skills, running):
    part = ranges.claim(skills, running)
    assert ranges.renew(skills, part)
    control.pause(running)
    assert not ranges.renew(skills, part)


@pytest.mark.parametrize(
    ("blocks", "striped", "count", "largest"),
    [
        (0, False, 0, 0),
        (255, False, 1, 255),
        (1_000, False, 4, 256),
        (1_000, True, 1, 1_000),
        (40_000, False, 64, 625),
        (40_000, True, 20, 2_048),
        (1_000_000, False, 489, 2_048),
        (8_000_000, False, 1_000, 8_000),
    ],
)
def test_a_table_is_cut_so_that_nobody_waits_long_for_the_last_range(blocks, striped, count, largest):
    cut = ranges.cut_by_blocks([ranges.Part("", blocks, True)], striped=striped)
    sizes = [part["upper"] - part["lower"] for part in cut]
    assert (len(cut), max(sizes, default=0), sum(sizes)) == (count, largest, blocks)
