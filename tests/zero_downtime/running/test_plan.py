"""Does a plan say what a run would do, with the sizes of this database, and does looking at it leave all as it was?"""

import json
import re

import psycopg
import pytest
from django.contrib.postgres.operations import AddIndexConcurrently
from django.core.management import CommandError, call_command
from django.db import migrations, models, transaction
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState
from psycopg.pq import TransactionStatus

from gotong_royong.zero_downtime.postgres import catalog, locks
from gotong_royong.zero_downtime.running.executor import Executor
from gotong_royong.zero_downtime.running.plan import look_ahead, mentions
from tests.databases import conninfo, look

pytestmark = pytest.mark.once

LAST = ("accounts", "20260210231000_drop_profile_columns_from_users")
ROWS = """
    INSERT INTO users (username, email, password_hash)
    SELECT 'user' || i, 'user' || i || '@example.org', '!' FROM generate_series(1, 2000) i
"""


@pytest.fixture
def migrated(copied):
    database = copied("")
    execute(database, ROWS)
    execute(database, "ANALYZE users")
    return database


def execute(database, statement):
    with database.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def migration(*operations, name="20270101000000_trial", **attributes):
    body = {"operations": list(operations), **attributes}
    return type("Migration", (migrations.Migration,), body)(name, "accounts")


def ahead(database, *planned, **options):
    return look_ahead(Executor(database), [(one, False) for one in planned], **options)


def extend(executor, added, backwards):
    """Return a plan of these migrations, which come after all others and, to go back, are as good as applied."""
    graph, last = executor.loader.graph, executor.loader.graph.leaf_nodes("accounts")[0]
    for one in added if backwards else ():
        key = "accounts", one.name
        graph.add_node(key, one)
        graph.add_dependency(one, key, last)
        executor.loader.applied_migrations[key] = one
        last = key
    return [(one, True) for one in reversed(added)] if backwards else [(one, False) for one in added]


def plan(database, capsys, *arguments, **options):
    call_command("migrate", *arguments, database=database.alias, plan=True, **options)
    return capsys.readouterr().out


def as_json(database, capsys, *arguments, **options):
    return json.loads(plan(database, capsys, *arguments, format="json", **options))


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ('ALTER TABLE "users" ADD COLUMN "location" text', {'"users"'}),
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY public.users (id)", {"i", "public.users", "public"}),
        ("DROP TABLE IF EXISTS a, b.c CASCADE", {"a", "b.c", "b"}),
        ("ALTER TABLE a ADD FOREIGN KEY (user_id) REFERENCES users (id)", {"a", "users"}),
        ("UPDATE a SET location = b.x FROM b JOIN c ON c.id = b.id", {"a", "b", "c", "c.id"}),
        ("COMMENT ON COLUMN users.bio IS 'tasks; FROM tasks'", {"users.bio", "users"}),
        ("DROP INDEX CONCURRENTLY idx", {"idx"}),
        ("ALTER TABLE a DROP CONSTRAINT IF EXISTS fk; ALTER TABLE a VALIDATE CONSTRAINT other", {"a", "fk", "other"}),
        ("TRUNCATE a; LOCK TABLE b -- FROM c\n", {"a", "b"}),
        ("DO $$ BEGIN IF NOT EXISTS (SELECT FROM a) THEN EXECUTE 'ALTER TABLE b DROP c'; END IF; END $$", {"a", "b"}),
        (
            "CREATE FUNCTION f() RETURNS trigger AS $x$ DELETE FROM a; $x$; CREATE TRIGGER t BEFORE INSERT ON b",
            {"b"},
        ),
        ("-- Python: FROM a", set()),
        ('/* FROM a /* FROM b */ */ ALTER TABLE "A.b"."C, d" ADD c int', {'"A.b"."C, d"', '"A.b"'}),
        ("do $x$ begin -- FROM a\nexecute 'DROP TABLE ' || 'FROM ''b''; LOCK Cd'; end $x$", {"cd"}),
        ("SELECT $$FROM a$$, 'FROM b' FROM c", {"c"}),
    ],
)
def test_names_in_statements(statement, names):
    assert mentions(statement) == names


class TestSizes:
    def test_a_table_by_its_name_its_index_and_its_foreign_key(self, migrated):
        found = catalog.tables(
            migrated, ['"users"', "idx_users_email", "profiles_user_id_36580373_fk_users_id", "username", "pg_class"]
        )
        assert set(found) == {'"users"', "idx_users_email", "profiles_user_id_36580373_fk_users_id"}
        (users,) = set(found.values())
        assert users.name == "users"
        assert users.rows == 2000
        assert users.bytes == execute(migrated, "SELECT pg_total_relation_size('users')")[0][0]
        assert re.fullmatch(r"users: about 2,000 rows, \d,?\d+ kB", str(users))

    def test_the_estimate_grows_with_the_table_after_it_was_analyzed(self, migrated):
        execute(migrated, ROWS.replace("'user'", "'more'"))
        assert 3500 < catalog.tables(migrated, ["users"])["users"].rows < 4500

    def test_empty_and_never_analyzed(self, migrated):
        execute(migrated, "CREATE TABLE fresh WITH (autovacuum_enabled = off) AS SELECT 1 AS id")
        found = catalog.tables(migrated, ["fresh", "task_skills"])
        assert str(found["task_skills"]) == "task_skills: empty"
        assert found["fresh"].rows is None
        assert str(found["fresh"]) == "fresh: unknown number of rows (never analyzed), 8,192 bytes"

    def test_a_partitioned_table_is_the_sum_of_its_partitions(self, scratch):
        execute(scratch, "CREATE TABLE log (day int) PARTITION BY LIST (day)")
        for day in (1, 2):
            execute(scratch, f"CREATE TABLE log_{day} PARTITION OF log FOR VALUES IN ({day})")
            execute(scratch, f"INSERT INTO log SELECT {day} FROM generate_series(1, 500)")
            execute(scratch, f"ANALYZE log_{day}")
        found = catalog.tables(scratch, ["log", "log_1"])
        assert (found["log"].rows, found["log_1"].rows) == (1000, 500)
        assert found["log"].bytes == 2 * found["log_1"].bytes


class TestSteps:
    def test_sql_is_what_sqlmigrate_prints(self, scratch, capsys):
        """Over the whole history, from nothing, without the comments that sqlmigrate adds."""
        steps = as_json(scratch, capsys)
        call_command("migrate", database=scratch.alias, verbosity=0)
        for step in steps:
            call_command("sqlmigrate", step["app"], step["name"], database=scratch.alias)
            printed = "".join(capsys.readouterr().out.split())
            for statement in step["statements"]:
                assert statement.startswith("--") or "".join(statement.split()) in printed
        assert len(steps) == len(execute(scratch, "SELECT 1 FROM django_migrations"))
        assert all(step["tables"] == [] for step in steps)

    def test_tables_come_from_sql_python_and_what_a_dropped_table_points_to(self, migrated, capsys):
        steps = as_json(migrated, capsys, "accounts", "20260210131000")
        touched = {step["name"][15:]: [table["name"] for table in step["tables"]] for step in steps}
        assert touched["populate_markov_user_ids"] == ["users"]
        assert set(touched["create_vouches_table"]) == {"vouches", "users", "skills"}
        assert touched["stop_syncing_profiles"] == ["users"]
        assert {step["direction"] for step in steps} == {"down"}
        python = next(step for step in steps if step["name"].endswith("populate_markov_user_ids"))
        assert python["statements"] == ["-- Not SQL: Run the backfill accounts.populate_markov_user_ids"]
        assert not python["atomic"]

    def test_a_state_without_effect_touches_nothing(self, migrated):
        alter = migrations.AlterModelOptions("user", {"ordering": ["username"]})
        (step,) = ahead(migrated, migration(alter))
        assert (step.statements, step.tables) == ([], [])

    def test_python_is_never_run(self, migrated):
        def ruin(apps, editor):
            raise AssertionError

        hidden = migrations.SeparateDatabaseAndState([migrations.RunPython(ruin)])
        (step,) = ahead(migrated, migration(migrations.RunPython(ruin), hidden))
        assert [sql.rpartition(".")[2] for sql in step.statements] == ["ruin", "ruin"]

    def test_the_states_roll_on(self, migrated):
        points = migrations.AddField("user", "points", models.IntegerField(db_default=1))
        rename = migrations.RenameField("user", "points", "score")
        first, second = ahead(migrated, migration(points), migration(rename, name="20270102000000_rename"))
        assert second.statements == ['ALTER TABLE "users" RENAME COLUMN "points" TO "score";']
        assert [table.name for table in first.tables + second.tables] == ["users", "users"]

    @pytest.mark.parametrize("backwards", [False, True])
    def test_the_work_does_not_grow_with_what_else_points_to_a_model(self, migrated, monkeypatch, backwards):
        """Django renders every model that points to users after each of these operations."""

        def grow(number):
            owner = models.ForeignKey("accounts.User", models.CASCADE, related_name="+")
            fields = [("id", models.AutoField(primary_key=True)), ("owner", owner)]
            create = migrations.CreateModel(f"Thing{number}", fields)
            add = migrations.AddField(f"Thing{number}", "size", models.IntegerField(null=True))
            return migration(create, add, name=f"20270101{number:06}_thing")

        def render(state, apps):
            rendered.append(state.name)
            return really(state, apps)

        def work(count):
            rendered.clear()
            executor = Executor(migrated)
            steps = look_ahead(executor, extend(executor, [grow(number) for number in range(count)], backwards))
            assert len(steps) == count
            assert all(step.statements for step in steps)
            return len(rendered)

        really, rendered = ModelState.render, []
        monkeypatch.setattr(ModelState, "render", render)
        first, second, third = work(2), work(4), work(8)
        assert third - second == 2 * (second - first) > 0

    def test_what_django_must_look_up_after_earlier_steps_is_said_in_words(self, migrated):
        create = migrations.CreateModel("Tag", [("id", models.AutoField(primary_key=True)), ("a", models.TextField())])
        unique = migrations.AlterField("tag", "a", models.TextField(unique=True))
        back = migrations.AlterField("tag", "a", models.TextField())
        together = migrations.AlterUniqueTogether("tag", {("id", "a")})
        apart = migrations.AlterUniqueTogether("tag", set())
        first, second, third = ahead(
            migrated,
            migration(create, unique),
            migration(back, name="20270102000000_back"),
            migration(together, apart, name="20270103000000_together"),
        )
        assert not any(sql.startswith("--") for sql in first.statements)
        assert second.statements == [
            'DROP INDEX IF EXISTS "accounts_tag_a_b4887ca0_like";',
            "-- Perhaps more: Django looks up names of indexes and constraints on accounts_tag, "
            "which a step above makes or changes.",
        ]
        cannot = "-- Not known before the steps above have run: ValueError: Found wrong number (0)"
        assert any(sql.startswith(cannot) for sql in third.statements)

    def test_what_asks_of_untouched_tables_is_told(self, migrated):
        email = migrations.AlterField("user", "email", models.TextField())
        (step,) = ahead(migrated, migration(email))
        assert not any(sql.startswith("--") for sql in step.statements)

    def test_a_concurrent_index_in_a_transaction_is_told_beforehand(self, migrated):
        add = AddIndexConcurrently("user", models.Index(fields=["is_staff"], name="trial"))
        inside, outside = ahead(migrated, migration(add), migration(add, atomic=False, name="20270102000000_other"))
        assert "cannot be executed inside a transaction" in inside.statements[0]
        assert outside.statements == ['CREATE INDEX CONCURRENTLY "trial" ON "users" ("is_staff");']
        assert [table.name for table in inside.tables] == ["users"]

    def test_only_recorded(self, migrated):
        operation = migrations.CreateModel("Again", [("id", models.AutoField(primary_key=True))], {"db_table": "users"})
        initial = migration(operation, initial=True)
        (really,), (initially,) = ahead(migrated, initial), ahead(migrated, initial, fake_initial=True)
        (faked,) = ahead(migrated, migration(operation), fake=True)
        assert [step.faked for step in (really, initially, faked)] == [False, True, True]
        assert (initially.statements, faked.statements) == ([], [])
        assert "only recorded" in str(faked)


class TestLooking:
    def test_it_writes_nothing_and_needs_no_lock(self, scratch, capsys):
        parameters = conninfo(scratch)
        with psycopg.connect(**parameters, autocommit=True) as runner:
            runner.execute("SELECT pg_advisory_lock(%s)", [locks.RUNNER])
            assert "accounts.20260210120000_create_users_table (up, pre-deploy)" in plan(scratch, capsys)
        assert execute(scratch, "SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []

    def test_it_waits_for_nobody_who_has_a_table_and_tells_its_size(self, migrated, capsys):
        with psycopg.connect(**conninfo(migrated)) as somebody:
            somebody.execute("LOCK TABLE users")
            said = plan(migrated, capsys, "accounts", "20260210230000").splitlines()
            assert '    ALTER TABLE "users" ADD COLUMN "bio" text NULL;' in said
            assert re.fullmatch(r"  touches users: about 2,000 rows, \d,?\d+ kB", said[-1])
            assert migrated.connection.info.transaction_status == TransactionStatus.IDLE

    @pytest.mark.parametrize("atomic", [True, False])
    def test_an_operation_that_writes_past_the_editor_is_stopped(self, migrated, atomic):
        class Write(Operation):
            def state_forwards(self, app_label, state):
                pass

            def database_forwards(self, app_label, schema_editor, from_state, to_state):
                execute(schema_editor.connection, "DELETE FROM users")

        before = look(migrated)
        also = migrations.AddField("user", "points", models.IntegerField(null=True))
        (step,) = ahead(migrated, migration(Write(), also, atomic=atomic))
        assert "cannot execute DELETE in a read-only transaction" in step.statements[0]
        assert step.statements[1:] == ['ALTER TABLE "users" ADD COLUMN "points" integer NULL;']
        assert execute(migrated, "SELECT count(*) FROM users") == [(2000,)]
        assert look(migrated) == before

    def test_the_session_can_write_afterwards(self, migrated, capsys):
        plan(migrated, capsys, "accounts", "zero")
        execute(migrated, "DELETE FROM users")
        migrated.set_autocommit(False)
        execute(migrated, ROWS)
        migrated.rollback()
        migrated.set_autocommit(True)


class TestCommand:
    def test_text(self, migrated, capsys):
        lines = plan(migrated, capsys, "accounts", "20260210230000").splitlines()
        assert lines[:2] == ["Planned operations:", f"{'.'.join(LAST)} (down, post-deploy)"]
        assert '    ALTER TABLE "users" ADD COLUMN "bio" text NULL;' in lines
        assert re.fullmatch(r"  touches users: about 2,000 rows, \d,?\d+ kB", lines[-1])

    def test_verbosity(self, migrated, capsys):
        quiet, normal, wordy = (
            plan(migrated, capsys, "accounts", "20260210230000", verbosity=verbosity) for verbosity in (0, 1, 2)
        )
        assert "touches users" in quiet
        assert "ALTER TABLE" not in quiet
        assert "Undo Remove field bio from user" in wordy
        assert "Undo" not in normal

    def test_nothing_to_do(self, migrated, capsys):
        assert plan(migrated, capsys) == "Planned operations:\n  No planned migration operations.\n"
        assert plan(migrated, capsys, check_unapplied=True, run_syncdb=True)
        assert as_json(migrated, capsys) == []

    def test_check_exits_with_1_and_still_prints(self, scratch, capsys):
        with pytest.raises(SystemExit) as caught:
            plan(scratch, capsys, "contenttypes", check_unapplied=True)
        assert caught.value.code == 1
        assert "contenttypes.0002_remove_content_type_name (up, pre-deploy)" in capsys.readouterr().out

    def test_an_irreversible_step_is_marked(self, migrated, capsys, monkeypatch):
        last = Executor(migrated).loader.graph.nodes[LAST]
        monkeypatch.setattr(type(last), "operations", [migrations.RunSQL("SELECT 1")])
        printed = plan(migrated, capsys, "accounts", "20260210230000")
        assert "-- CANNOT BE TAKEN BACK: Raw SQL operation has no reverse." in printed

    def test_stage(self, scratch, capsys, monkeypatch):
        users = Executor(scratch).loader.graph.nodes["accounts", "20260210120000_create_users_table"]
        monkeypatch.setattr(type(users), "stage", "post_deploy", raising=False)
        with pytest.raises(CommandError, match=r"needs accounts\.20260210120000_create_users_table"):
            plan(scratch, capsys, stage="pre_deploy")
        assert "accounts." not in capsys.readouterr().out
        assert "create_users_table (up, post-deploy)" in plan(scratch, capsys, stage="post_deploy")

    def test_what_cannot_be_planned(self, migrated, capsys):
        with pytest.raises(CommandError, match="No installed app with label 'nope'"):
            plan(migrated, capsys, "nope")
        with pytest.raises(CommandError, match="Cannot find a migration matching '1999' from app 'tasks'"):
            plan(migrated, capsys, "tasks", "1999")
        with pytest.raises(CommandError, match="--plan changes nothing"):
            plan(migrated, capsys, "tasks", prune=True)

    def test_it_leaves_the_transaction_of_its_caller_as_it_was(self, migrated, capsys):
        with transaction.atomic(using=migrated.alias):
            execute(migrated, "DELETE FROM users")
            execute(migrated, "SET LOCAL lock_timeout = '7s'")
            plan(migrated, capsys, "accounts", "zero")
            assert execute(migrated, "SHOW lock_timeout") == [("7s",)]
            execute(migrated, ROWS)
        assert execute(migrated, "SELECT count(*) FROM users") == [(2000,)]


def test_what_is_half_done_is_told(shop):
    shop.write("0002_sizes", 'column("items", "a"), column("items", "b"), column("nowhere", "c")', "atomic = False")
    shop.fail("migrate")
    said = shop.succeed("migrate", "--plan")
    assert "shop.0002_sizes (up, pre-deploy, not in one transaction, half done: goes on after operation 2)" in said
    assert "ADD COLUMN c int" in said
    assert "ADD COLUMN a int" not in said
    assert "[ ] 0002_sizes" in (said := shop.succeed("showmigrations"))
    assert "half done by run 1, which failed: migrate goes on after operation 2, rollback takes it back\n" in said
    (step,) = json.loads(shop.succeed("migrate", "--plan", "--format", "json"))
    assert step["done"] == [1, 2]
