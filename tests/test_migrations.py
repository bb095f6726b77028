"""Does the history go up, down to nothing and up again, with data in the tables, and is it what the guide asks for?"""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import migrations
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader

from tests.databases import conninfo, look, url
from tests.test_constraints import ROWS

OURS = ("accounts", "tasks", "contributions")
BEFORE_POPULATE = ("accounts", "20260210150000_add_check_constraint_vouches")
POPULATE = ("accounts", "20260210160000_populate_markov_user_ids")
BEFORE_COPY = ("accounts", "20260210211000_sync_profiles_with_users")
COPY = ("accounts", "20260210212000_copy_users_into_profiles")
LAST = ("accounts", "20260210231000_drop_profile_columns_from_users")

GRAPH = MigrationLoader(None).graph
HISTORY = sorted(key for key in GRAPH.nodes if key[0] in OURS)


def steps_up():
    """Every migration of every app, in an order that Django itself would take."""
    plan = itertools.chain.from_iterable(GRAPH.forwards_plan(leaf) for leaf in GRAPH.leaf_nodes())
    return list(dict.fromkeys(plan))


def migrate(database, *targets):
    executor = MigrationExecutor(database)
    executor.migrate(list(targets))


@pytest.mark.once
class TestShape:
    def test_the_guide_story_is_told_in_its_order_with_its_names(self):
        names = sorted(name for _, name in HISTORY)
        story = [
            "20260210120000_create_users_table",
            "20260210130000_add_bio_to_users",
            "20260210140000_create_task_skills_table",
            "20260210150000_add_check_constraint_vouches",
            "20260210160000_populate_markov_user_ids",
            "20260210170000_add_index_contributions_user_status",
        ]
        assert [name for name in names if name in story] == story
        assert names[-1] == LAST[1]

    def test_names_are_timestamps_and_none_is_given_twice(self):
        stamps = [name[:14] for _, name in HISTORY]
        for _, name in HISTORY:
            assert re.fullmatch(r"\d{14}_[a-z][a-z0-9_]*", name)
            time.strptime(name[:14], "%Y%m%d%H%M%S")
        assert len(set(stamps)) == len(stamps)

    @pytest.mark.parametrize("key", HISTORY, ids="{0[1]}".format)
    def test_it_comes_after_what_it_depends_on(self, key):
        for app, name in GRAPH.nodes[key].dependencies:
            if app in OURS:
                assert name < key[1]

    @pytest.mark.parametrize("key", HISTORY, ids="{0[1]}".format)
    def test_schema_and_data_stand_apart_and_both_can_be_undone(self, key):
        migration = GRAPH.nodes[key]
        data = [isinstance(operation, migrations.RunPython) for operation in migration.operations]
        assert len(data) == 1 or not any(data)
        assert all(operation.reversible for operation in migration.operations)

    @pytest.mark.parametrize("key", HISTORY, ids="{0[1]}".format)
    def test_what_must_not_hold_its_locks_to_the_end_is_not_atomic(self, key):
        migration = GRAPH.nodes[key]
        for operation in migration.operations:
            assert not isinstance(operation, migrations.AddIndex | migrations.AddConstraint) or self.is_new(migration)
            text = str(getattr(operation, "sql", ""))
            if isinstance(operation, migrations.RunPython) or "CONCURRENTLY" in text or "VALIDATE" in text:
                assert migration.atomic is False
            if "ADD CONSTRAINT" in text:
                added, validated = operation.sql
                assert "NOT VALID" in added
                assert "VALIDATE CONSTRAINT" in validated

    @staticmethod
    def is_new(migration):
        """Whether every table that gets an index or a constraint is made in the same migration."""
        made = {
            operation.name_lower for operation in migration.operations if isinstance(operation, migrations.CreateModel)
        }
        touched = {
            operation.model_name_lower for operation in migration.operations if hasattr(operation, "model_name_lower")
        }
        return touched <= made


@pytest.mark.django_db
def test_nothing_is_left_to_make():
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_up_down_to_zero_and_up_again_with_data_in_the_tables(scratch):
    empty = look(scratch)
    call_command("migrate", database=scratch.alias, verbosity=0)
    full = look(scratch)
    assert full != empty
    with scratch.cursor() as cursor:
        cursor.execute(ROWS)
    for app in sorted({app for app, _ in GRAPH.nodes}):
        call_command("migrate", app, "zero", database=scratch.alias, verbosity=0, interactive=False)
    left = look(scratch)
    assert {line for lines in left.values() for line in lines if "django_migrations" not in line} == set()
    call_command("migrate", database=scratch.alias, verbosity=0)
    assert look(scratch) == full


def test_each_step_down_leads_to_where_its_step_up_began_with_data_in_the_tables(scratch):
    executor = MigrationExecutor(scratch)
    executor.recorder.ensure_schema()
    seen = []
    for key in steps_up():
        seen.append((key, look(scratch)))
        executor.loader.build_graph()
        executor.migrate([key], plan=[(GRAPH.nodes[key], False)])
    with scratch.cursor() as cursor:
        cursor.execute(ROWS)
        cursor.execute("UPDATE profiles SET bio = 'carpenter', location = 'Solo', avatar_url = 'https://example.org/m'")
    for key, before in reversed(seen):
        executor.loader.build_graph()
        executor.migrate([], plan=[(GRAPH.nodes[key], True)])
        assert look(scratch) == before, key


def test_all_raw_sql_of_the_history_may_run_twice(scratch):
    """The guide: migrations must be safe to run multiple times. Schema operations of Django learn that later."""
    call_command("migrate", database=scratch.alias, verbosity=0)
    full = look(scratch)
    gone = {"sync_profile", "profiles_user"}
    for key in steps_up():
        for operation in GRAPH.nodes[key].operations if key[0] in OURS else ():
            if isinstance(operation, migrations.RunSQL) and not gone & set(re.findall(r"\w+", str(operation.sql))):
                with scratch.schema_editor(atomic=False) as editor:
                    operation.database_forwards(key[0], editor, None, None)
    assert look(scratch) == full


class TestPopulate:
    COUNT = 5_000

    @pytest.fixture
    def users(self, scratch):
        """A table of users from before the trigger that assigns the ids."""
        migrate(scratch, BEFORE_POPULATE)
        self.insert(scratch, "old", self.COUNT)
        return scratch

    @staticmethod
    def insert(database, prefix, count):
        with database.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO users (username, email, password_hash, bio, location)
                SELECT %s || i, %s || i || '@example.org', '!', 'bio ' || i, CASE WHEN i %% 2 = 0 THEN 'Solo' END
                FROM generate_series(1, %s) i
                """,
                [prefix, prefix, count],
            )

    @staticmethod
    def ask(database, question):
        with database.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()

    RIGHT = "SELECT count(*), count(*) FILTER (WHERE markov_user_id = 'gotong_royong:' || id) FROM users"

    def test_forwards_and_back(self, users, capsys):
        assert self.ask(users, self.RIGHT) == (self.COUNT, 0)
        migrate(users, POPULATE)
        assert self.ask(users, self.RIGHT) == (self.COUNT, self.COUNT)
        assert "5,000 rows, all done." in capsys.readouterr().out
        with users.cursor() as cursor:
            cursor.execute("UPDATE users SET markov_user_id = 'given by hand' WHERE username = 'old1'")
        migrate(users, BEFORE_POPULATE)
        assert self.ask(users, "SELECT count(*), count(markov_user_id) FROM users") == (self.COUNT, 1)

    def test_what_was_there_before_is_kept(self, users):
        with users.cursor() as cursor:
            cursor.execute("UPDATE users SET markov_user_id = 'elsewhere:1' WHERE username = 'old7'")
        migrate(users, POPULATE)
        assert self.ask(users, "SELECT markov_user_id FROM users WHERE username = 'old7'") == ("elsewhere:1",)
        assert self.ask(users, self.RIGHT) == (self.COUNT, self.COUNT - 1)

    def test_rows_inserted_while_and_after_it_runs_get_theirs(self, users):
        stop, at_work, inserted = threading.Event(), threading.Event(), 0

        def keep_inserting():
            nonlocal inserted
            with psycopg.connect(**conninfo(users), autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute(
                        "INSERT INTO users (username, email, password_hash) VALUES (%s, %s, '!')",
                        [f"new{inserted}", f"new{inserted}@x.org"],
                    )
                    inserted += 1
                    if inserted == 10:
                        at_work.set()

        thread = threading.Thread(target=keep_inserting)
        thread.start()
        try:
            at_work.wait()
            before = inserted
            migrate(users, POPULATE)
        finally:
            stop.set()
            thread.join()
        self.insert(users, "after", 1)
        count, right = self.ask(users, self.RIGHT)
        assert count == right == self.COUNT + inserted + 1
        assert inserted > before

    def test_a_killed_run_keeps_what_it_committed_and_the_next_one_ends_it(self, users):
        self.insert(users, "more", 60_000)
        users.close()
        command = [sys.executable, "manage.py", "migrate", *POPULATE]
        environment = {**os.environ, "DATABASE_URL": url(users), "DJANGO_SETTINGS_MODULE": "tests.settings"}
        run = subprocess.Popen(command, env=environment, cwd=settings.BASE_DIR, stdout=subprocess.DEVNULL)
        while not self.ask(users, "SELECT count(markov_user_id) FROM users")[0]:
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        done = self.ask(users, "SELECT count(markov_user_id) FROM users")[0]
        assert 0 < done < 65_000
        assert POPULATE not in MigrationLoader(users).applied_migrations
        finished = subprocess.run(
            command, env=environment, cwd=settings.BASE_DIR, capture_output=True, text=True, check=True
        )
        assert "65,000 rows, all done." in finished.stdout
        assert self.ask(users, self.RIGHT) == (65_000, 65_000)


class TestSplitOfUsers:
    SAME = """
        SELECT count(*), count(*) FILTER (
            WHERE (u.bio, u.location, u.avatar_url) IS NOT DISTINCT FROM (p.bio, p.location, p.avatar_url)
        )
        FROM users u JOIN profiles p ON p.user_id = u.id
    """

    @pytest.fixture
    def users(self, scratch):
        migrate(scratch, ("accounts", "20260210190000_add_check_constraints_vouches_and_user_skills"))
        TestPopulate.insert(scratch, "old", 3_000)
        return scratch

    ask = staticmethod(TestPopulate.ask)

    def test_forwards_and_back(self, users):
        migrate(users, COPY)
        assert self.ask(users, self.SAME) == (3_000, 3_000)
        migrate(users, LAST)
        with users.cursor() as cursor:
            cursor.execute("UPDATE profiles SET bio = 'written after the split' WHERE bio = 'bio 77'")
            cursor.execute("INSERT INTO users (username, email, password_hash) VALUES ('new', 'new@example.org', '!')")
            cursor.execute(
                "INSERT INTO profiles (user_id, bio) SELECT id, 'newcomer' FROM users WHERE username = 'new'"
            )
        migrate(users, BEFORE_COPY)
        assert self.ask(users, self.SAME) == (3_001, 3_001)
        assert self.ask(users, "SELECT bio FROM users WHERE username = 'new'") == ("newcomer",)
        assert self.ask(users, "SELECT bio FROM users WHERE username = 'old77'") == ("written after the split",)
        migrate(users, LAST)
        assert self.ask(users, "SELECT bio FROM profiles JOIN users ON id = user_id WHERE username = 'new'") == (
            "newcomer",
        )

    def test_what_old_code_writes_between_copy_and_drop_is_not_lost(self, users):
        migrate(users, COPY)
        TestPopulate.insert(users, "late", 10)
        with users.cursor() as cursor:
            cursor.execute("UPDATE users SET bio = NULL, location = 'Solo' WHERE username = 'old5'")
        assert self.ask(users, self.SAME) == (3_010, 3_010)

    def test_old_code_writing_during_the_copy(self, users):
        migrate(users, BEFORE_COPY)
        stop, at_work, written = threading.Event(), threading.Event(), 0

        def keep_writing():
            nonlocal written
            with psycopg.connect(**conninfo(users), autocommit=True) as connection:
                while not stop.is_set():
                    connection.execute(
                        "UPDATE users SET bio = %s WHERE username = %s", [f"v{written}", f"old{written % 3_000 + 1}"]
                    )
                    written += 1
                    at_work.set()

        thread = threading.Thread(target=keep_writing)
        thread.start()
        try:
            at_work.wait()
            before = written
            migrate(users, COPY)
        finally:
            stop.set()
            thread.join()
        assert written > before
        assert self.ask(users, self.SAME) == (3_000, 3_000)


class TestGuideIntegration:
    """The guide's own tests: up, down, and what stands in between."""

    def tables(self, database):
        with database.cursor() as cursor:
            return set(database.introspection.table_names(cursor))

    def test_creates_and_drops_all_tables(self, scratch):
        call_command("migrate", database=scratch.alias, verbosity=0)
        tables = {model._meta.db_table for app in OURS for model in apps.get_app_config(app).get_models()}
        assert len(tables) == 15
        assert tables <= self.tables(scratch)
        for app in OURS:
            call_command("migrate", app, "zero", database=scratch.alias, verbosity=0, interactive=False)
        assert not tables & self.tables(scratch)

    def test_every_file_is_where_the_guide_says(self):
        for app, name in HISTORY:
            assert Path(settings.BASE_DIR, app, "migrations", f"{name}.py").is_file()
