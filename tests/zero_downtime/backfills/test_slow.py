"""Does a backfill get to its end where rows, locks, Python or connections are slow?"""

import time
from contextlib import ExitStack

import psycopg
import pytest
from django.db.models import Q
from django.db.models.functions import Upper

from gotong_royong.zero_downtime.backfills import batches, control, pool, ranges, verification
from gotong_royong.zero_downtime.exceptions import BackfillFailed
from gotong_royong.zero_downtime.models import Backfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE, going, in_jobs, until
from tests.zero_downtime.load import holding

pytestmark = pytest.mark.once

Status = Backfill.Status


class TestLocks:
    def test_rows_that_somebody_keeps_locked_are_done_once_they_are_free(self, fill, declare, run, ask, skills):
        fill(5_000)
        some = "SELECT id FROM skills WHERE name LIKE '%7' FOR UPDATE"
        with holding(conninfo(skills), some, 1.0):
            row = run(declare())
        assert row.status == Status.SUCCEEDED
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_all_others_are_done_while_one_waits(self, fill, declare, ask, skills):
        """Somebody has written what the update of that row would, and has not committed."""
        fill(3_000)
        ask("CREATE UNIQUE INDEX ON skills (description)")
        name = declare()
        with psycopg.connect(**conninfo(skills)) as user:
            user.execute("INSERT INTO skills (name, description) VALUES ('other', 'SKILL 1 7')")
            with going(name, skills):
                until(lambda: ask("SELECT count(*) FROM skills WHERE description IS NULL") == 1)
                user.rollback()
        assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
        assert ask(UNDONE) == ask(TWICE) == 0

    @pytest.mark.once
    def test_ctrl_c_does_not_wait_for_a_table_that_somebody_keeps_locked(self, skills, fill, declare, ask, monkeypatch):
        monkeypatch.setattr(verification, "LEFT", 10)
        fill(40_000)
        name = declare()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'backfill'"
            " AND wait_event_type = 'Lock' AND query LIKE 'SELECT%'"
        )
        with ExitStack() as stack:

            def show(row, progress):
                if row.ranges.filter(number__gt=0).exists():
                    stack.enter_context(holding(conninfo(skills), "LOCK TABLE skills", 30.0))
                    until(lambda: ask(waits))
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                pool.run(name, skills.alias, at_full_speed=True, show=show)
            held = "mode = 'AccessExclusiveLock' AND granted AND relation = 'skills'::regclass"
            assert ask(f"SELECT count(*) FROM pg_locks WHERE {held}") == 1


@pytest.mark.once
class TestSlowRows:
    """Which are too slow for a batch of many, though each alone is not."""

    @pytest.fixture(autouse=True)
    def slow(self, ask, monkeypatch):
        ask(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END $$"
        )
        ask("CREATE TRIGGER slow BEFORE UPDATE ON skills FOR EACH ROW EXECUTE FUNCTION slow()")
        monkeypatch.setattr(batches, "LONGEST", 0.5)  # which are 0.1 s
        monkeypatch.setattr(batches, "SMALLEST", 0.3)

    @pytest.mark.parametrize("python", [False, True])
    def test_they_are_done_some_at_a_time(self, fill, declare, run, ask, settings, python):
        settings.ZERO_DOWNTIME_PATIENCE = 1.0
        fill(60)
        how = {"process": lambda self, batch: batch.update(description=Upper("name"))} if python else {}
        row = run(declare(**how))
        assert row.status == Status.SUCCEEDED
        assert row.ranges.filter(sweep=2, number__gt=0).count() == 0
        assert ask(UNDONE) == ask(TWICE) == 0


@pytest.mark.once
class TestPatience:
    def test_a_few_looks_may_take_longer(self, fill, declare, run, ask, settings):
        settings.ZERO_DOWNTIME_PATIENCE = 0.0
        fill(100)
        ask("CREATE SEQUENCE numbers")
        more = (
            "INSERT INTO skills (name) SELECT 'late ' || nextval('numbers') WHERE (SELECT last_value < 5 FROM numbers)"
        )
        ask(f"CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {more}; RETURN NULL; END $$")
        ask("CREATE TRIGGER more AFTER UPDATE ON skills EXECUTE FUNCTION more()")
        assert run(declare()).status == Status.SUCCEEDED
        assert ask(UNDONE) == ask(TWICE) == 0

    @pytest.mark.parametrize("workers", [1, 2])
    def test_no_worker_takes_over_from_one_that_waits(self, skills, fill, declare, run, settings, monkeypatch, workers):
        settings.ZERO_DOWNTIME_PATIENCE = 3.0
        monkeypatch.setattr(ranges, "LEASE", 1.0)
        fill(300)
        name = declare(where=None)
        with (
            holding(conninfo(skills), "SELECT FROM skills WHERE name = 'skill 1 7' FOR UPDATE", 30.0),
            pytest.raises(BackfillFailed, match="Somebody keeps the table or its last rows locked"),
        ):
            run(name, workers=workers)

    def test_it_is_of_one_loss_of_the_connection_not_of_all(self, fill, declare, ask, skills, settings):
        settings.ZERO_DOWNTIME_PATIENCE = 0.4
        fill(5_000)

        def process(self, batch):
            time.sleep(0.05)
            batch.update(description=Upper("name"))

        name = declare(process=process)
        mine = "application_name = 'backfill' AND datname = current_database() AND backend_xid IS NOT NULL"
        with going(name, skills, workers=1):
            for share in (0.1, 0.5):
                until(lambda: control.status(name, skills.alias)[1].share > share)  # noqa: B023
                until(lambda: ask(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {mine}"))
                time.sleep(0.5)
        assert control.status(name, skills.alias)[0].status == Status.SUCCEEDED
        assert ask(UNDONE) == ask(TWICE) == 0


@pytest.mark.once
class TestSlowPython:
    """The session is ended that idles in its transaction, as it does while Python asks somebody else."""

    @pytest.fixture(autouse=True)
    def lease(self, monkeypatch):
        monkeypatch.setattr(ranges, "LEASE", 0.4)

    @pytest.mark.parametrize("where", [Q(description=None), None], ids=["physical", "keys"])
    @pytest.mark.parametrize("seconds", [0.005, 0.05])
    def test_it_gets_fewer_rows(self, fill, declare, run, ask, monkeypatch, seconds, where):
        monkeypatch.setattr(verification, "LEFT", 20)

        def process(self, batch):
            time.sleep(seconds * len(batch))
            batch.update(description=Upper("name"))

        fill(60)
        row = run(declare(process=process, where=where), workers=2)
        assert (row.status, row.order) == (Status.SUCCEEDED, "physical" if where else "keys")
        assert ask(UNDONE) == ask(TWICE) == 0
        assert control.progress(row).longest_batch < 0.8

    def test_it_gets_on_in_jobs_that_end_after_a_while(self, skills, fill, declare, ask, monkeypatch):
        monkeypatch.setattr(verification, "LEFT", 20)

        def process(self, batch):
            time.sleep(0.05 * len(batch))
            batch.update(description=Upper("name"))

        fill(40)
        row = control.get_or_create(declare(process=process), skills.alias)
        assert in_jobs(row, 0.3) > 1
        assert row.status == Status.SUCCEEDED
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_it_is_told_where_one_row_takes_too_long(self, fill, declare, run, ask):
        fill(20)
        with pytest.raises(BackfillFailed, match=r"Its process method did not use the database for more than 0.4 s"):
            run(declare(process=lambda self, batch: time.sleep(0.6)))
        assert ask("SELECT count(*) FROM written") == 0
