"""Is every row done, and does no backfill fail, if partitions come and go at any moment?"""

import itertools
from contextlib import suppress

import psycopg
import pytest

from gotong_royong.zero_downtime.backfills import control, verification
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.models import Backfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import UNDONE
from tests.zero_downtime.backfills.test_fire import DECLARATIONS, WRONG

pytestmark = [pytest.mark.once, pytest.mark.slow]

Status = Backfill.Status
LAID_OUT = """
    DROP TABLE IF EXISTS skills, a, b, c, d CASCADE;
    CREATE TABLE skills (LIKE old INCLUDING DEFAULTS) PARTITION BY LIST (category);
    CREATE TABLE a PARTITION OF skills FOR VALUES IN ('a');
    CREATE TABLE b PARTITION OF skills FOR VALUES IN ('b');
    CREATE TABLE c PARTITION OF skills FOR VALUES IN ('c');
    CREATE INDEX ON skills (md5(description));
    INSERT INTO skills (name, category, description)
    SELECT i, part, CASE WHEN position(part IN '{}') = 0 THEN i END
    FROM generate_series(1, 30) i, unnest(ARRAY['a', 'b', 'c']) part;
    TRUNCATE written;
    CREATE TRIGGER log_written AFTER UPDATE OF description ON skills FOR EACH ROW EXECUTE FUNCTION log_written()
"""
DROP, RENAME = "DROP TABLE b", "ALTER TABLE b RENAME TO d"
DETACH = "ALTER TABLE skills DETACH PARTITION b"
ATTACH = """
    CREATE TABLE d (LIKE skills INCLUDING DEFAULTS);
    INSERT INTO d (name, category) SELECT i, 'd' FROM generate_series(1, 30) i;
    ALTER TABLE skills ATTACH PARTITION d FOR VALUES IN ('d')
"""


class Change:
    """Is made at the n-th time that the worker may stop, or at the next one at which its locks are not in the way."""

    def __init__(self, session, statement, moment, row):
        self.session, self.row = session, row
        self.statement = f"SET LOCAL lock_timeout = 20; {statement}"
        self.moments = itertools.count(-moment)
        self.in_sweep = None

    def __call__(self):
        if next(self.moments) >= 0 and self.in_sweep is None:
            with suppress(psycopg.errors.LockNotAvailable):
                self.session.execute(self.statement)
                self.in_sweep = self.row.sweep
        return False


@pytest.mark.parametrize(
    ("statement", "to_do", "declaration"),
    [
        pytest.param(DROP, "abc", "update", id="drop-update"),
        pytest.param(DROP, "abc", "join", id="drop-join"),
        pytest.param(DETACH, "abc", "python", id="detach-python"),
        pytest.param(RENAME, "b", "update", id="rename-update"),
        pytest.param(ATTACH, "abc", "update", id="attach-update"),
    ],
)
def test_partitions_change_at_any_moment(skills, declare, ask, monkeypatch, statement, to_do, declaration):
    """Each time a moment later, until the backfill has ended before that. It is paced, for somebody else is at work."""
    monkeypatch.setattr(verification, "LEFT", 10)
    name = declare(**DECLARATIONS[declaration])
    ask("ALTER TABLE skills RENAME TO old")
    with psycopg.connect(**conninfo(skills), autocommit=True) as session:
        for moment in itertools.count():
            session.execute(LAID_OUT.format(to_do))
            control.forget(name, skills.alias)
            row = control.get_or_create(name, skills.alias)
            change = Change(session, statement, moment, row)
            assert Worker(row, stop=change).run().status == Status.SUCCEEDED
            came_late = statement == ATTACH and change.in_sweep == row.sweep  # maybe during the last look
            assert came_late or ask(UNDONE) == 0
            assert ask(WRONG) == 0
            if change.in_sweep is None:
                break
    assert moment > 8


def test_a_lock_of_one_of_them_fails_no_other(skills, declare, ask, monkeypatch):
    monkeypatch.setattr(verification, "LEFT", 10)
    ask("ALTER TABLE skills RENAME TO old")
    ask(LAID_OUT.format("abc"))
    row = control.get_or_create(declare(), skills.alias)
    locked = []
    with psycopg.connect(**conninfo(skills)) as user:

        def lock():
            if row.sweep > 1:
                user.rollback()
            elif not locked and row.ranges.filter(number__gt=0).exists():
                user.execute("LOCK TABLE b")
                locked.append("b")

        skills.close()
        monkeypatch.setitem(skills.settings_dict, "OPTIONS", {"options": "-c lock_timeout=50ms"})
        assert Worker(row, stop=lock, at_full_speed=True).run().status == Status.SUCCEEDED
    assert locked
    assert ask(UNDONE) == 0
