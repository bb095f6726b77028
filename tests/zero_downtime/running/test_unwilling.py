"""Does a server or a database that does not do what a command wants end it in one sentence, or not at all?"""

import psycopg
import pytest

from tests.databases import conninfo, look

pytestmark = pytest.mark.once

COMMANDS = ["migrate", "rollback --yes --all", "backfill run shop.fill", "showmigrations", "migrate --plan"]
READ_ONLY = "The server is a standby, or the database is read-only. Use one that takes writes."
ODD = """
    CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE 'the moon is wrong' USING ERRCODE = 'ZZ042', DETAIL = 'maria@example.org';
    END $$;
    CREATE TRIGGER odd BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION odd()
"""
TABLES = ["run", "step", "effect", "backfill", "backfill_range"]


@pytest.fixture
def migrated(shop):
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    return shop


def execute(database, sql):
    with database.cursor() as cursor:
        cursor.execute(sql)


def one_line(shop, command):
    """Run the command; return what it says if it ends with a sentence, or two of a step, and nothing if it succeeds."""
    done = shop.run(*command.split())
    assert "Traceback" not in done.err, done.err
    assert (done.code, done.err.count("\n")) in {(0, 0), (1, 1), (1, 2)}, done
    return done.err


@pytest.mark.parametrize("command", ["migrate", "rollback --yes --all"])
def test_a_server_that_is_only_read(migrated, scratch, command):
    execute(scratch, f"ALTER DATABASE {scratch.alias} SET default_transaction_read_only = on")
    scratch.close()
    before = look(scratch)
    said = migrated.fail(*command.split())
    assert "in a read-only transaction" in said
    assert READ_ONLY in said
    assert "shop.0001_items" in migrated.succeed("migrate", "--plan") + migrated.succeed("rollback", "--plan")
    migrated.succeed("showmigrations")
    assert look(scratch) == before


def test_an_empty_one_that_is_only_read(shop, scratch):
    execute(scratch, f"ALTER DATABASE {scratch.alias} SET default_transaction_read_only = on")
    said = shop.fail("migrate")
    assert READ_ONLY in said
    assert "GRANT" not in said


@pytest.mark.parametrize("table", ["django_migrations", "zero_downtime_run", "zero_downtime_step"])
def test_a_table_that_is_locked_is_waited_for_by_no_plan_and_within_the_patience_by_a_run(migrated, scratch, table):
    migrated.settings("ZERO_DOWNTIME_PATIENCE = 1\n")
    with psycopg.connect(**conninfo(scratch)) as other:
        other.execute(f"LOCK TABLE {table}")
        for command in ["migrate --plan", "rollback --plan", "showmigrations"]:
            said = one_line(migrated, command)
            assert "Another session holds the lock." in said or table == "zero_downtime_run"
        done = migrated.run("migrate")
        assert f"Waiting for process {other.info.backend_pid} (" in done.out
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "for longer than 1 s (ZERO_DOWNTIME_PATIENCE)" in done.err
    migrated.succeed("migrate")


@pytest.mark.parametrize("table", ["zero_downtime_run", "django_migrations", "zero_downtime_step"])
def test_a_code_that_nobody_knows(migrated, scratch, table):
    execute(scratch, ODD.format(table))
    said = [one_line(migrated, command) for command in COMMANDS]
    assert any("the moon is wrong" in line for line in said)
    assert "maria" not in "".join(line for line in said if line.startswith("CommandError"))


@pytest.mark.parametrize("table", [*(f"zero_downtime_{name}" for name in TABLES), "django_migrations"])
def test_a_table_that_is_gone(migrated, scratch, table):
    execute(scratch, f"DROP TABLE {table} CASCADE")
    for command in [*COMMANDS, "backfill list"]:
        one_line(migrated, command)
