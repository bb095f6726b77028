"""Does a run keep to its lock budget, survive whatever ends it, and write down what it did?"""

import signal
import time

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections, migrations, models
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.exceptions import BlockedTooLong, LockNotObtained, StepFailed
from gotong_royong.zero_downtime.models import Run, Status, Step
from gotong_royong.zero_downtime.running import history, recall
from gotong_royong.zero_downtime.running.guard import Guard
from gotong_royong.zero_downtime.running.loader import Loader
from gotong_royong.zero_downtime.running.watchdog import Watchdog
from tests.catalog import fingerprint
from tests.databases import conninfo, look
from tests.forks import Forked
from tests.zero_downtime.load import holding, load
from tests.zero_downtime.steps import ask, environment, run

READ = "SELECT id FROM users LIMIT 1"
WRITE = "UPDATE users SET is_staff = false WHERE username = 'user1'"
ROWS = """
    INSERT INTO users (username, email, password_hash)
    SELECT 'user' || i, 'user' || i || '@example.org', '!' FROM generate_series(1, 20000) i
"""
BEFORE_LAST = "20260210191000_add_check_constraints_tasks_and_task_assignments"
LOCK_TIMEOUT = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"


@pytest.fixture
def migrated(copied):
    database = copied("")
    with database.cursor() as cursor:
        cursor.execute(ROWS)
    return database


def migrate(database, *arguments):
    return Forked("manage.py", "migrate", *arguments, env=environment(database), cwd=settings.BASE_DIR)


class TestLockBudget:
    def test_readers_and_writers_pass_while_somebody_holds_the_table(self, migrated):
        """The step waits for the holder in many short tries; nobody queues behind it for longer than one of them."""
        parameters = conninfo(migrated)
        with load(parameters, READ, WRITE) as victims, holding(parameters, READ, 1.5, from_first_wait=True):
            step = run(migrated, migrations.AddField("user", "points", models.IntegerField(db_default=1)))
        assert step.tries > 1
        assert step.status == Status.SUCCEEDED
        assert step.lock_wait > 0.1
        assert all(victim.count > 50 for victim in victims)
        assert max(victim.longest for victim in victims) < 1.0  # against 1.5 s without a budget

    def test_a_statement_of_its_own_is_tried_again_by_itself(self, migrated):
        with holding(conninfo(migrated), READ, 0.6):
            step = run(
                migrated,
                migrations.RunSQL("INSERT INTO skills (name) VALUES ('once')"),
                migrations.RunSQL("ALTER TABLE users ADD COLUMN points int"),
                atomic=False,
            )
        assert step.tries == 1
        assert ask(migrated, "SELECT count(*) FROM skills WHERE name = 'once'") == (1,)

    def test_patience_ends(self, migrated, settings):
        settings.ZERO_DOWNTIME_PATIENCE = 0.3
        with holding(conninfo(migrated), READ, 30), pytest.raises(LockNotObtained, match=r"Gave up after \d+ tries"):
            run(migrated, migrations.RunSQL("ALTER TABLE users ADD COLUMN points int"))
        assert Step.objects.using(migrated.alias).latest("pk").status == Status.FAILED
        assert Run.objects.using(migrated.alias).latest("pk").status == Status.FAILED

    def test_the_session_is_as_before(self, migrated):
        before = ask(migrated, LOCK_TIMEOUT)
        seen = []
        run(migrated, migrations.RunPython(lambda *_: seen.append(ask(migrated, LOCK_TIMEOUT))))
        assert seen == [before]  # code sees no limit of ours
        assert ask(migrated, LOCK_TIMEOUT) == before
        with pytest.raises(StepFailed, match="in operation 1 of 1: ZeroDivisionError: division by zero"):
            run(migrated, migrations.RunPython(lambda *_: 1 / 0))
        assert ask(migrated, LOCK_TIMEOUT) == before

    def test_who_is_to_mend_it_is_told_all_that_postgresql_says(self, migrated):
        with pytest.raises(StepFailed, match=r"could not create unique index .* DETAIL: Key .*=\(f\) is duplicated"):
            run(migrated, migrations.RunSQL("CREATE UNIQUE INDEX trial ON users (is_staff)"))

    def test_concurrent_builds_are_exempt(self, migrated):
        """A writer holds a concurrent build up for longer than the lock timeout; it goes on waiting."""
        with holding(conninfo(migrated), WRITE, 0.6, from_first_wait=True):
            step = run(migrated, migrations.RunSQL("CREATE INDEX CONCURRENTLY trial ON users (is_staff)"), atomic=False)
        assert step.tries == 1
        assert step.lock_wait > 0.2
        assert ask(migrated, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'trial'::regclass") == (True,)


class TestWatchdog:
    def test_who_blocks_for_too_long_is_canceled_and_undone(self, migrated, settings):
        settings.ZERO_DOWNTIME_BLOCK_BUDGET = 1.0  # in which both have come, on a busy machine, too
        slow = "ALTER TABLE users ADD COLUMN points text; SELECT pg_sleep(20)"
        started = time.monotonic()
        with load(conninfo(migrated), READ, WRITE), pytest.raises(BlockedTooLong) as caught:
            run(migrated, *map(migrations.RunSQL, slow.split(";")))
        assert time.monotonic() - started < 10
        message = str(caught.value)
        assert "accounts.20270101000000_trial was stopped in operation 2 of 2. It held" in message
        assert "AccessExclusiveLock on table users, which blocks reads and writes: 2 sessions waited" in message
        assert "pg_sleep(20)" in message
        step = Step.objects.using(migrated.alias).latest("pk")
        assert (step.status, step.blocked_sessions) == (Status.FAILED, 2)
        assert 0.9 < step.longest_blocked <= step.total_blocked  # the watchdog's clock and the server's differ
        with pytest.raises(Exception, match="does not exist"):
            ask(migrated, "SELECT points FROM users")

    def test_python_that_idles_in_its_transaction_is_ended_too(self, migrated, settings):
        settings.ZERO_DOWNTIME_BLOCK_BUDGET = 0.2

        def idle(apps, editor):
            editor.execute("ALTER TABLE users ADD COLUMN points int")
            time.sleep(2)
            editor.execute("SELECT 1")

        with load(conninfo(migrated), READ) as victims, pytest.raises(BlockedTooLong):
            run(migrated, migrations.RunPython(idle))
        assert victims[0].longest < 1.5


class TestOneRunner:
    def test_eight_deploys_at_once(self, scratch):
        scratch.close()
        deploys = [migrate(scratch) for _ in range(8)]
        outputs = [deploy.communicate(timeout=120)[0] for deploy in deploys]
        assert [deploy.returncode for deploy in deploys] == [0] * 8, outputs
        assert sum("No migrations to apply." in output for output in outputs) == 7
        assert any("Waiting for " in output for output in outputs)
        assert Run.objects.using(scratch.alias).count() == 1


class TestKilled:
    def test_a_run_that_was_killed_after_its_last_step_is_recognized_where_nothing_is_left_to_do(self, scratch, capsys):
        call_command("migrate", database=scratch.alias, verbosity=0)
        run = Run.objects.using(scratch.alias).get()
        Run.objects.using(scratch.alias).update(status=Status.RUNNING, finished_at=None)
        capsys.readouterr()
        call_command("migrate", database=scratch.alias)
        output = capsys.readouterr().out
        assert f"Found run {run.pk} (migrate) by " in output
        assert "No migrations to apply." in output
        run.refresh_from_db()
        assert (run.status, bool(run.finished_at)) == (Status.DIED, True)

    def test_a_run_that_was_killed_is_recognized_and_finished(self, scratch):
        call_command("migrate", database=scratch.alias, verbosity=0)
        expected = look(scratch)
        for delay in (0.25, 0.4, 0.55):
            with scratch.cursor() as cursor:
                cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            deploy = migrate(scratch)
            while ask(scratch, "SELECT to_regclass('zero_downtime_run')") == (None,):
                assert deploy.poll() is None
            time.sleep(delay)
            deploy.send_signal(signal.SIGKILL)
            deploy.communicate()
            again = migrate(scratch)
            output = again.communicate(timeout=60)[0]
            assert again.returncode == 0, output
            assert look(scratch) == expected
            assert set(Run.objects.using(scratch.alias).values_list("status", flat=True)) <= {
                Status.DIED,
                Status.SUCCEEDED,
            }

    def test_sigterm_closes_the_ledger(self, migrated):
        call_command("migrate", "tasks", BEFORE_LAST, database=migrated.alias, verbosity=0)
        with psycopg.connect(**conninfo(migrated)) as holder:
            holder.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")
            deploy = migrate(migrated)
            while not Step.objects.using(migrated.alias).filter(status=Status.RUNNING).exists():
                assert deploy.poll() is None
                time.sleep(0.02)
            deploy.terminate()
            output = deploy.communicate(timeout=30)[0]
        assert deploy.returncode == 130, output
        assert Run.objects.using(migrated.alias).latest("pk").status == Status.INTERRUPTED
        assert Step.objects.using(migrated.alias).latest("pk").status == Status.INTERRUPTED

    @pytest.mark.parametrize(
        ("room", "moment", "status"),
        [(Watchdog, "new_step", Status.INTERRUPTED), (Guard, "trying", Status.SUCCEEDED)],
    )
    def test_ctrl_c_just_before_or_after_a_step_closes_it(self, migrated, monkeypatch, room, moment, status):
        call_command("migrate", "tasks", BEFORE_LAST, database=migrated.alias, verbosity=0)
        go = getattr(room, moment)

        def interrupt(*arguments):
            go(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(room, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call_command("migrate", database=migrated.alias, verbosity=0)
        step = Step.objects.using(migrated.alias).latest("pk")
        assert (step.run.status, step.status) == (Status.INTERRUPTED, status)
        assert step.finished_at


class TestLedger:
    def test_forgetting_what_is_applied_changes_nothing_and_fails_nothing(self, migrated):
        before = look(migrated)
        with migrated.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations")
        call_command("migrate", database=migrated.alias, verbosity=0)
        assert look(migrated) == before
        loader = MigrationLoader(migrated)
        assert set(loader.graph.nodes) == set(loader.applied_migrations)

    def test_an_app_that_lacks_a_table_between_two_models_was_not_forgotten(self, migrated):
        with migrated.cursor() as cursor:
            cursor.execute("DROP TABLE auth_group_permissions")
            cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
        lost = recall.lost(migrated, (loader := Loader(migrated)), history.remembered(migrated.alias, loader))
        assert lost == []
        assert ask(migrated, "SELECT to_regclass('auth_group_permissions')") == (None,)

    def test_a_step_says_what_it_did(self, migrated):
        steps = Step.objects.using(migrated.alias)
        populate = steps.get(name="20260210160000_populate_markov_user_ids")
        assert (populate.direction, populate.status, populate.tries, populate.faked) == ("up", "succeeded", 1, False)
        assert len(populate.checksum) == 64
        assert populate.finished_at >= populate.started_at
        assert len(populate.run.revision) in {0, 40}
        recorded = [key for key in MigrationLoader(migrated).graph.nodes if key[0] != "zero_downtime"]
        assert steps.count() == len(recorded)  # all but the ledger's own

    def test_faked_steps_are_recorded_as_such(self, scratch):
        call_command("migrate", "contenttypes", database=scratch.alias, fake=True, verbosity=0)
        assert set(Step.objects.using(scratch.alias).values_list("faked", flat=True)) == {True}

    def test_a_test_database_has_no_ledger(self, db):
        assert not Run.objects.exists()

    def test_no_alias_is_left_behind(self, migrated):
        assert set(connections.databases) <= {"default", migrated.alias}
        assert not hasattr(connections._connections, f"{migrated.alias}_ledger")


class TestStages:
    def test_what_needs_a_later_stage_is_named(self, scratch, monkeypatch):
        loader = MigrationLoader(scratch)
        contract = type(loader.graph.nodes["tasks", "20260210140000_create_task_skills_table"])
        monkeypatch.setattr(contract, "stage", "post_deploy", raising=False)
        with pytest.raises(CommandError) as caught:
            call_command("migrate", "tasks", stage="pre_deploy", database=scratch.alias, verbosity=0)
        assert (
            "tasks.20260210181000_create_task_assignments_table needs tasks.20260210140000_create_task_skills_table"
            in str(caught.value)
        )
        assert "tasks" in fingerprint_tables(scratch)
        assert "task_skills" not in fingerprint_tables(scratch)
        call_command("migrate", "tasks", stage="post_deploy", database=scratch.alias, verbosity=0)
        assert "task_assignments" in fingerprint_tables(scratch)


def fingerprint_tables(database):
    with database.cursor() as cursor:
        return {line.split(" | ")[0] for line in fingerprint(cursor)["columns"]}
