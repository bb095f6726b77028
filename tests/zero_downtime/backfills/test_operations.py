"""What does a migration do with a backfill, on small tables and large ones, forwards and back?"""

import threading
from contextlib import suppress

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections, migrations, models, transaction
from django.db.migrations.writer import MigrationWriter
from django.db.models import F, Q
from django.db.models.functions import Concat

from gotong_royong.zero_downtime.backfills import control, inline, pool
from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError
from gotong_royong.zero_downtime.models import Backfill
from gotong_royong.zero_downtime.operations import RequireBackfill, RunBackfill
from tests.databases import conninfo
from tests.test_migrations import BEFORE_POPULATE, POPULATE
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE, until
from tests.zero_downtime.steps import run as run_operations

pytestmark = pytest.mark.once

Status = Backfill.Status


def test_a_small_table_is_done_at_once_and_taken_back(skills, fill, ask, declare):
    fill(2_500)
    back = declare("Back", where=Q(description__isnull=False), update={"description": None})
    name = declare(reverse=back)
    run_operations(skills, RunBackfill(name), RequireBackfill(name), atomic=False)
    assert ask(UNDONE) == ask(TWICE) == 0
    assert control.get_or_create(name, skills.alias).status == Status.SUCCEEDED
    assert RunBackfill(name).reversible
    assert not RunBackfill(back).reversible
    inline.take_back(name, skills, apps.get_model("accounts", "Skill"))
    assert ask("SELECT count(description) FROM skills") == 0
    assert name not in control.names(skills.alias)
    with pytest.raises(ZeroDowntimeError, match=r"accounts.back names no reverse"):
        inline.take_back(back, skills, apps.get_model("accounts", "Skill"))


SKILL = apps.get_model("accounts", "Skill")


def test_a_reverse_of_another_model_changes_that_ones_rows(skills, fill, ask, declare, model):
    fill(50)
    model("Note", skills, text=models.TextField())
    ask("INSERT INTO note (text) SELECT 'x' FROM generate_series(1, 5)")
    back = declare("Back", model="accounts.Note", where=None, process=lambda self, batch: batch.delete())
    inline.take_back(declare(reverse=back), skills, SKILL)
    assert (ask("SELECT count(*) FROM skills"), ask("SELECT count(*) FROM note")) == (50, 0)


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.PAUSED])
def test_what_is_taken_back_is_not_taken_up_meanwhile(skills, fill, ask, declare, status):
    fill(10)
    ask("UPDATE skills SET description = 'done'")
    was = []

    def process(self, batch):
        was.append(control.status(name, skills.alias)[0].status)
        batch.update(description=None)

    name = declare(reverse="accounts.back")
    declare("Back", where=Q(description__isnull=False), process=process)
    Backfill.objects.using(skills.alias).create(name=name, status=status)
    inline.take_back(name, skills, SKILL)
    assert set(was) == {Status.CANCELED}


@pytest.fixture
def in_a_batch(skills, fill, declare):
    """A backfill of which a worker is in the middle of a batch, its thread, and what ends the batch once it is set."""
    fill(2_500)
    inside, over = threading.Event(), threading.Event()

    def process(self, batch):
        inside.set()
        over.wait(10)
        batch.update(description="done")

    declare("Back", where=Q(description__isnull=False), update={"description": None})
    name = declare(process=process, reverse="accounts.back")

    def work():
        with suppress(ZeroDowntimeError):  # it is forgotten
            pool.run(name, skills.alias)
        connections[skills.alias].close()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    yield name, thread, over
    over.set()
    thread.join(10)


def test_what_is_taken_back_is_waited_for_until_it_has_done_its_batch(skills, ask, in_a_batch):
    name, worker, over = in_a_batch
    threading.Timer(0.5, over.set).start()
    inline.take_back(name, skills, SKILL)
    assert name not in control.names(skills.alias)
    worker.join(10)
    assert ask("SELECT count(description) FROM skills") == 0


def test_it_is_not_waited_for_any_longer_than_the_patience(skills, in_a_batch, settings):
    settings.ZERO_DOWNTIME_PATIENCE = 0.2
    told = (
        rf"^{in_a_batch[0]} is canceled, but .*, process \d+, thread \d+ is still in the middle of a batch of it after"
    )
    with pytest.raises(ZeroDowntimeError, match=told):
        inline.take_back(in_a_batch[0], skills, SKILL)


def test_taking_back_is_refused_in_a_transaction(skills, declare):
    name = declare(reverse="accounts.back")
    declare("Back")
    row = control.get_or_create(name, skills.alias)
    with transaction.atomic(using=skills.alias), pytest.raises(ZeroDowntimeError, match="Set atomic = False in the mi"):
        inline.take_back(name, skills, SKILL)
    row.refresh_from_db()
    assert row.status == Status.PENDING


def test_a_large_table_is_left_to_the_workers(skills, fill, ask, declare, run, settings, capsys):
    settings.ZERO_DOWNTIME_BACKFILL_INLINE = 1_000
    fill(2_500)
    name, told = declare(), []
    control.pending.connect(receiver := lambda **facts: told.append(facts["name"]))
    run_operations(skills, RunBackfill(name), atomic=False)
    assert "About 2,500 rows, more than ZERO_DOWNTIME_BACKFILL_INLINE, are left to the background: a worker" in (
        capsys.readouterr().out
    )
    control.pending.disconnect(receiver)
    assert told == [name]
    run_operations(skills, RunBackfill(name), atomic=False)
    assert f"no queue is installed, so it waits for backfill run {name}." in capsys.readouterr().out
    assert ask(UNDONE) == 2_500
    wanted = r"must be done before this, but it is pending, and about 2,500 rows .* backfill run accounts.trial"
    with pytest.raises(ZeroDowntimeError, match=wanted):
        run_operations(skills, RequireBackfill(name), atomic=False)
    control.pause(control.get_or_create(name, skills.alias))
    run_operations(skills, RunBackfill(name), atomic=False)
    assert f"are left to the background: it is paused until backfill resume {name}." in capsys.readouterr().out
    control.resume(control.get_or_create(name, skills.alias))
    run(name)
    run_operations(skills, RequireBackfill(name), atomic=False)


def test_rows_to_do_that_have_come_since_it_had_succeeded(skills, fill, ask, declare, run, settings):
    settings.ZERO_DOWNTIME_BACKFILL_INLINE = 100
    fill(500)
    name = declare()
    run(name)
    fill(100)
    run_operations(skills, RequireBackfill(name), atomic=False)
    assert ask(UNDONE) == ask(TWICE) == 0
    fill(101)
    with pytest.raises(ZeroDowntimeError, match=r"but it is pending, and about 101 rows may be left. Run backfill"):
        run_operations(skills, RequireBackfill(name), atomic=False)


def test_the_rest_is_done_if_it_is_little(skills, fill, ask, declare):
    fill(100)
    run_operations(skills, RequireBackfill(declare()), atomic=False)
    assert ask(UNDONE) == 0


def test_one_that_was_never_started_is_required(skills, fill, declare, settings):
    settings.ZERO_DOWNTIME_BACKFILL_INLINE = 1_000
    fill(2_500)
    wanted = r"it is not started, and about 2,500 rows may be left. Run backfill run accounts.trial, then migrate"
    with pytest.raises(ZeroDowntimeError, match=wanted):
        run_operations(skills, RequireBackfill(declare()), atomic=False)


def test_not_in_a_transaction(skills, fill, declare):
    with pytest.raises(ZeroDowntimeError, match="Set atomic = False in the migration"):
        run_operations(skills, RunBackfill(declare()))


def test_what_cannot_be_done_fails_the_migration_and_the_next_one_tries_again(skills, fill, ask, declare):
    fill(100)
    ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%77')")
    name = declare()
    with pytest.raises(ZeroDowntimeError, match="1 row could not be changed"):
        run_operations(skills, RunBackfill(name), atomic=False)
    ask("ALTER TABLE skills DROP CONSTRAINT no_seven")
    run_operations(skills, RunBackfill(name), atomic=False)
    assert ask(UNDONE) == 0


@pytest.mark.parametrize("operation", [RunBackfill, RequireBackfill])
def test_what_failed_without_a_where_is_done_once(skills, fill, ask, declare, operation):
    fill(100)
    ask("UPDATE skills SET category = ''")
    ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (category NOT LIKE '%77')")
    name = declare(where=None, update={"category": Concat(F("category"), F("name"))})
    with pytest.raises(ZeroDowntimeError, match="1 row could not be changed"):
        run_operations(skills, RunBackfill(name), atomic=False)
    ask("ALTER TABLE skills DROP CONSTRAINT no_seven")
    run_operations(skills, operation(name), atomic=False)
    assert ask("SELECT count(*) FROM skills WHERE category = name") == 100


def test_the_projects_own_goes_back_and_forth(skills, ask):
    ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 3000) i")
    call_command("migrate", *BEFORE_POPULATE, database=skills.alias, verbosity=0, interactive=False)
    assert ask("SELECT count(markov_user_id) FROM users") == 0
    assert control.names(skills.alias) == []
    call_command("migrate", *POPULATE, database=skills.alias, verbosity=0)
    assert ask("SELECT count(*) FROM users WHERE markov_user_id = 'gotong_royong:' || id") == 3_000


def test_it_is_written_into_files_by_its_public_name(declare):
    migration = type("Migration", (migrations.Migration,), {"operations": [RunBackfill("accounts.trial")]})(
        "1", "accounts"
    )
    written = MigrationWriter(migration).as_string()
    assert "from gotong_royong.zero_downtime.operations import RunBackfill" in written or (
        "gotong_royong.zero_downtime.operations.RunBackfill(" in written
    )
    assert "operations.backfills" not in written


def test_what_users_write_meanwhile_stays_where_nothing_is_recorded(skills, fill, declare, ask):
    fill(5)
    name = declare()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    def finish():
        database = connections[skills.alias]
        inline._at_once(name, database, apps.get_model("accounts", "Skill"))
        database.close()

    with psycopg.connect(**conninfo(skills)) as user:
        user.execute("UPDATE skills SET description = 'theirs' WHERE name = 'skill 1 3'")
        thread = threading.Thread(target=finish)
        thread.start()
        until(lambda: ask(waits))
    thread.join()
    assert ask("SELECT description FROM skills WHERE name = 'skill 1 3'") == "theirs"
    assert ask(UNDONE) == 1
