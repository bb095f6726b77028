"""Does a role that lacks a right learn which, and of whom it needs to ask it?"""

import psycopg
import pytest

from gotong_royong.zero_downtime.models import Run
from gotong_royong.zero_downtime.postgres import locks
from tests.databases import conninfo, look, url
from tests.zero_downtime.shop import finish

PASSWORD = "for-tests-only"
ITEM = """migrations.CreateModel("Item", [
    ("id", models.AutoField(primary_key=True)), ("size", models.IntegerField(default=1)),
])"""
INDEX = 'migrations.AddIndex("item", models.Index(fields=["size"], name="by_size"))'


@pytest.fixture
def guest(scratch):
    """A role that may connect and no more; its address."""
    name = scratch.alias.replace("scratch", "guest")
    with scratch.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield url(scratch, user=name, password=PASSWORD)
    with scratch.cursor() as cursor:
        cursor.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER; DROP OWNED BY {name}; DROP ROLE {name}")


def grant(database, *rights):
    name = database.alias.replace("scratch", "guest")
    with database.cursor() as cursor:
        for right in rights:
            cursor.execute(f"GRANT {right} TO {name}")


def test_a_role_that_may_make_no_tables(shop, scratch, guest):
    before = look(scratch)
    said = shop.fail("migrate", DATABASE_URL=guest)
    assert said.startswith("NoLedger: The ledger's tables (zero_downtime_run, zero_downtime_step) cannot be made: ")
    assert "permission denied for schema public" in said
    assert "Nothing was changed. GRANT USAGE, CREATE ON SCHEMA public TO guest_" in said
    assert look(scratch) == before


def test_a_role_that_may_not_write_the_ledger(shop, scratch, guest):
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    grant(scratch, "CREATE ON SCHEMA public", "SELECT ON ALL TABLES IN SCHEMA public")
    said = shop.fail("migrate", DATABASE_URL=guest)
    assert said == (
        "CommandError: permission denied for table zero_downtime_run. "
        "Use the role that owns the tables, or GRANT this role the missing right.\n"
    )
    said = shop.fail("rollback", "--yes", "--all", DATABASE_URL=guest)
    assert said.startswith("CommandError: permission denied for table ")


def test_a_role_that_may_read_nothing(shop, scratch, guest):
    shop.succeed("migrate")
    for command in ("migrate", "showmigrations", "rollback"):
        said = shop.fail(command, DATABASE_URL=guest)
        assert said.startswith("CommandError: permission denied for table django_migrations. Use the role that owns")


@pytest.mark.parametrize("command", ["migrate", "migrate --plan", "rollback --plan", "rollback --run 1 --yes --all"])
def test_a_role_that_may_not_read_the_ledger(shop, scratch, guest, command):
    """What it does not see must not be called unknown."""
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    grant(scratch, "CREATE ON SCHEMA public", "ALL ON django_migrations, zero_downtime_run")
    said = shop.fail(*command.split(), DATABASE_URL=guest)
    tables = "public.zero_downtime_step, public.zero_downtime_effect"
    assert said.startswith(
        "LedgerNotReadable: This role may not read the ledger: it lacks SELECT on "
        f"{tables}. Use the role that owns them, or GRANT SELECT ON {tables} TO guest_"
    )


@pytest.mark.parametrize("path", ["", 'nowhere, "The Shop"'])
def test_the_schema_in_which_the_ledger_cannot_be_made_is_named(shop, scratch, guest, path):
    with scratch.cursor() as cursor:
        cursor.execute('CREATE SCHEMA "The Shop"')
        cursor.execute(f"ALTER ROLE {scratch.alias.replace('scratch', 'guest')} SET search_path = {path or 'public'}")
    said = shop.fail("migrate", DATABASE_URL=guest)
    assert f"GRANT USAGE, CREATE ON SCHEMA {chr(34) + 'The Shop' + chr(34) if path else 'public'} TO guest_" in said


def test_a_search_path_that_leads_nowhere(shop, scratch):
    with scratch.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {scratch.alias} SET search_path = nowhere")
    assert "No schema of the role's search_path exists. Make one (CREATE SCHEMA)" in shop.fail("migrate")


@pytest.mark.parametrize("command", ["migrate --plan", "rollback --plan", "showmigrations"])
def test_who_locks_the_ledger_is_not_waited_for(shop, scratch, command):
    shop.succeed("migrate")
    shop.write("0002_size", 'column("items", "size")')
    with psycopg.connect(**conninfo(scratch)) as somebody:
        somebody.execute("LOCK TABLE zero_downtime_step")
        said = shop.fail(*command.split())
    assert said.startswith("CommandError: canceling statement due to lock timeout. Another session holds the lock. ")
    assert said.count("\n") == 1


def test_a_role_that_does_not_own_the_table(shop, scratch, guest):
    shop.succeed("migrate")
    grant(
        scratch,
        "CREATE ON SCHEMA public",
        "ALL ON ALL TABLES IN SCHEMA public",
        "ALL ON ALL SEQUENCES IN SCHEMA public",
    )
    shop.write("0002_size", 'column("items", "size")')
    said = shop.fail("migrate", DATABASE_URL=guest)
    assert said == (
        "StepFailed: shop.0002_size failed in operation 1 of 1: ProgrammingError: must be owner of table items\n"
        "Nothing of it is left. Migrate again as the role that owns it, or GRANT this role the missing right.\n"
    )
    run = Run.objects.using(scratch.alias).latest("pk")
    assert (run.status, run.steps.get().status) == ("failed", "failed")


def test_a_role_that_may_not_see_what_others_do(shop, scratch, guest):
    """Nor what they are called, if they say no name: it is told all the same which process it waits for."""
    grant(scratch, "CREATE ON SCHEMA public")
    shop.succeed("migrate", DATABASE_URL=guest)
    shop.write("0002_size", 'column("items", "size")')
    with psycopg.connect(**conninfo(scratch)) as holder:
        holder.execute("SELECT id FROM items")
        shop.settings("ZERO_DOWNTIME_PATIENCE = 2\n")
        done = shop.run("migrate", DATABASE_URL=guest)
        process = holder.info.backend_pid
    assert done.code == 1
    user = conninfo(scratch)["user"]
    assert f"got no lock: process {process} (user {user}). Next in " in done.out
    assert done.err.startswith("LockNotObtained: shop.0002_size was stopped in operation 1 of 1. Gave up after ")
    with psycopg.connect(**conninfo(scratch), autocommit=True) as holder:
        shop.write("0002_size", "migrations.RunSQL('SELECT 1')")
        holder.execute("SELECT pg_advisory_lock(%s)", [locks.RUNNER])
        run = shop.start("migrate", DATABASE_URL=guest)
        said, process = run.stdout.readline(), holder.info.backend_pid
    assert finish(run).code == 0
    assert said == f"Waiting for another migrate, process {process} (user {user}).\n"


def test_a_role_that_may_make_no_temporary_table(shop, scratch, guest):
    """What it cannot compare is executed, and PostgreSQL says whether that can be."""
    with scratch.cursor() as cursor:
        cursor.execute(f"REVOKE TEMP ON DATABASE {scratch.alias} FROM PUBLIC")
    grant(scratch, "CREATE ON SCHEMA public")
    shop.write("0001_items", ITEM, "atomic = False")
    shop.write("0002_fill", 'migrations.RunSQL("INSERT INTO shop_item (size) VALUES (1)", "")')
    larger = 'migrations.AlterField("item", "size", models.BigIntegerField())'
    shop.write("0003_size", f"{larger}, {INDEX}", "atomic = False")
    shop.succeed("migrate", DATABASE_URL=guest)
    before = look(scratch)
    with scratch.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'shop'; TRUNCATE zero_downtime_run CASCADE")
    shop.write("0002_fill", "")  # data that would be filled in twice are refused
    said = shop.fail("migrate", DATABASE_URL=guest)
    assert 'shop.0001_items failed in operation 1 of 1: ProgrammingError: relation "shop_item" already exists' in said
    shop.succeed("migrate", "--fake", DATABASE_URL=guest)
    assert look(scratch) == before
