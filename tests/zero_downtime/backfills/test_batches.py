"""Do batches leave room for others, and say what holds them up?"""

import itertools
import re

import psycopg
import pytest
from django.db.models import Func, TextField, Value

from gotong_royong.zero_downtime.backfills import batches, control
from gotong_royong.zero_downtime.backfills.verification import Verification
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.exceptions import BackfillFailed
from gotong_royong.zero_downtime.models import Backfill, BackfillRange
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE
from tests.zero_downtime.load import holding, load

Status = Backfill.Status

COUNT = """
    CREATE TABLE statements ();
    CREATE FUNCTION count_statement() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO statements DEFAULT VALUES;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_statement AFTER UPDATE ON skills FOR EACH STATEMENT EXECUTE FUNCTION count_statement();
"""


@pytest.mark.parametrize("index", [False, True])
def test_they_go_on_in_slices_while_others_are_at_work(skills, fill, declare, run, ask, index):
    fill(10_000)
    ask(COUNT)
    if index:
        ask("CREATE INDEX ON skills (description)")
    with load(conninfo(skills), "SELECT 1"):
        row = run(declare(), at_full_speed=False)
    assert row.status == Status.SUCCEEDED
    assert ask("SELECT count(*) FROM statements") > 1.3 * control.progress(row).batches  # it would be as many
    assert ask(UNDONE) == ask(TWICE) == 0


@pytest.mark.parametrize("index", [False, True])
def test_their_blocks_are_read_before_a_row_is_locked_while_others_are_at_work(skills, fill, declare, ask, index):
    fill(2_000)
    if index:
        ask("CREATE INDEX ON skills (description)")
    read, unread = set(), set()

    def note(execute, sql, params, many, context):
        places = [int(place) for place in re.findall(r"'\((\d+),0\)'", str(params))]
        if places and sql.startswith("SELECT count"):
            read.update(range(*places))
        elif places and sql.startswith("UPDATE"):
            unread.update({*range(*places)} - read)
        return execute(sql, params, many, context)

    worker = Worker(control.get_or_create(declare(), skills.alias))
    with load(conninfo(skills), "SELECT 1"), skills.execute_wrapper(note):
        assert worker.run().status == Status.SUCCEEDED
    assert read
    assert not unread


def test_what_they_write_goes_to_the_disk_at_once_while_others_are_at_work(skills, fill, declare, run, ask):
    setting = Func(Value("backend_flush_after"), function="current_setting", output_field=TextField())
    fill(10)
    run(declare(update={"description": setting}))
    with load(conninfo(skills), "SELECT 1"):
        fill(10)
        run(declare("Paced", update={"description": setting}), at_full_speed=False)
    assert ask("SELECT max(description) || min(description) FROM skills WHERE description <> '0'") == "256kB256kB"
    assert ask("SELECT count(*) FROM skills WHERE description = '0'") == 10


def test_a_verification_finds_a_row_that_moves_behind_it(skills, fill, declare, ask):
    fill(2_000)
    ask("UPDATE skills SET description = ''")
    ask("INSERT INTO skills (name) VALUES ('to do')")
    ask("ALTER TABLE skills ALTER filler SET STORAGE PLAIN")
    ask("DELETE FROM skills WHERE ctid < '(1,0)'")
    ask("VACUUM skills")
    slices, block = itertools.count(), "SELECT (ctid::text::point)[0] FROM skills WHERE name = 'to do'"
    before = ask(block)
    with psycopg.connect(**conninfo(skills), autocommit=True) as user:

        def move():
            if next(slices) == 2:
                user.execute("UPDATE skills SET filler = repeat('y', 6000) WHERE name = 'to do'")

        worker = Worker(control.get_or_create(declare(), skills.alias), stop=move)
        assert worker.throttle.ask().reason == "1 other session at work: half speed"
        found = Verification(worker.batches, BackfillRange(number=0)).left()
    assert ask(block) == 0 < before
    assert found == [ask("SELECT id FROM skills WHERE name = 'to do'")]


@pytest.mark.once
@pytest.mark.parametrize("where", [{}, {"where": None}], ids=["physical", "keys"])
def test_a_row_that_takes_too_long_is_told_apart_from_one_that_somebody_keeps_locked(
    fill, declare, run, ask, settings, monkeypatch, where
):
    settings.ZERO_DOWNTIME_PATIENCE = 1.0
    monkeypatch.setattr(batches, "SMALLEST", 0.1)
    fill(3)
    ask("CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$")
    ask("CREATE TRIGGER dawdle BEFORE UPDATE ON skills FOR EACH ROW EXECUTE FUNCTION dawdle()")
    with pytest.raises(BackfillFailed, match=r"One of its last rows takes longer than 0.1 s to change"):
        run(declare(**where))


def test_a_lock_timeout_of_the_role_does_not_end_a_verification(skills, fill, declare, run, ask, monkeypatch):
    fill(100)
    options = {**skills.settings_dict["OPTIONS"], "options": "-c lock_timeout=50ms"}
    monkeypatch.setitem(skills.settings_dict, "OPTIONS", options)
    with holding(conninfo(skills), "LOCK TABLE skills", 0.5):
        assert run(declare()).status == Status.SUCCEEDED
    assert ask(UNDONE) == 0
