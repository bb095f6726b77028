"""Are the sessions beside the run as the one that migrates, and does the run go on when one of them is ended?"""

import psycopg
import pytest
from django.db.migrations.recorder import MigrationRecorder

from tests.databases import conninfo, url
from tests.zero_downtime.running.test_permissions import PASSWORD
from tests.zero_downtime.shop import finish

ENDS = """
import psycopg
from django.db import migrations, models

END = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'migrate: ledger' " \\
      "AND datname = current_database()"
HOLDERS = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' " \\
      "AND application_name = 'migrate: ledger' AND datname = current_database()"
kept = []

def end(apps, schema_editor):
    parameters = schema_editor.connection.get_connection_params()
    known = {name: parameters[name] for name in ("dbname", "user", "password", "host", "port") if parameters.get(name)}
    kept.append(psycopg.connect(**known, autocommit=True))
    assert kept[0].execute(END).fetchall() == [(True,)]
    %s

def look(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(HOLDERS)
        print("holders:", *cursor.fetchone())
"""
TAKE = 'assert kept[0].execute("SELECT pg_try_advisory_lock(8819326013302433646)").fetchone() == (True,)'
BODY = """
class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = [("shop", "{after}")]
    operations = [migrations.RunPython({function}), migrations.RunSQL("SELECT 1")]
"""
RECEIVER = """
from django.db.backends.signals import connection_created

def at_home(connection, **_):
    if connection.alias == "default":
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE {owner}; SET search_path = \\"the shop's\\"")

connection_created.connect(at_home)
"""


def write(shop, atomic, also="pass"):
    for name, after, function in (("0002_ends", "0001_items", "end"), ("0003_looks", "0002_ends", "look")):
        body = BODY.format(atomic=atomic, after=after, function=function)
        (shop.migrations / f"{name}.py").write_text(ENDS % also + body)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_ledger_whose_session_is_ended_goes_on_with_its_lock(shop, scratch, atomic):
    shop.succeed("migrate")
    write(shop, atomic)
    said = shop.succeed("migrate")
    assert "holders: 1" in said
    assert "Run 2 succeeded: 2 steps" in said


def test_one_that_another_run_takes_over_goes_on_because_that_run_waits(shop, scratch):
    from gotong_royong.zero_downtime.postgres import locks

    shop.succeed("migrate")
    write(shop, False, TAKE.replace("8819326013302433646", str(locks.RUNNER)))
    said = shop.succeed("migrate")
    assert "holders: 0" in said
    assert "Run 2 succeeded: 2 steps" in said


@pytest.fixture
def home(scratch):
    """A schema of a role that nobody logs in as, and the role that may become it and may itself do nothing there."""
    owner, login = (scratch.alias.replace("scratch", name) for name in ("owner", "login"))
    with scratch.cursor() as cursor:
        cursor.execute(f"""
            CREATE ROLE {owner}; CREATE ROLE {login} LOGIN NOINHERIT PASSWORD '{PASSWORD}'; GRANT {owner} TO {login};
            CREATE SCHEMA "the shop's" AUTHORIZATION {owner}; REVOKE CREATE ON SCHEMA public FROM PUBLIC
        """)
    yield owner, url(scratch, user=login, password=PASSWORD)
    with scratch.cursor() as cursor:
        for name in (owner, login):
            cursor.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


@pytest.mark.parametrize("by", ["options", "receiver"])
def test_role_and_search_path_hold_for_all_sessions(shop, scratch, home, by):
    owner, shop.address = home
    if by == "receiver":
        shop.models(RECEIVER.format(owner=owner))
    else:
        path = '-c search_path="the\\ shop\'s"'
        shop.settings(f"DATABASES['default']['OPTIONS'] = {{'assume_role': '{owner}', 'options': {path!r}}}\n")
    shop.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute("""SELECT count(*) FROM "the shop's".zero_downtime_step WHERE name = '0001_items'""")
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT to_regclass('public.items'), to_regclass('public.zero_downtime_run')")
        assert cursor.fetchone() == (None, None)
    assert not MigrationRecorder(scratch).has_table()
    shop.write("0002_long", 'column("items", "size"), migrations.RunSQL("SELECT pg_sleep(20)", "")')
    shop.settings((shop.folder / "shop_settings.py").read_text() + "ZERO_DOWNTIME_BLOCK_BUDGET = 0.3\n")
    run = shop.start("migrate")
    with psycopg.connect(**conninfo(scratch), autocommit=True) as user:
        while not user.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'migrate' AND query LIKE '%%pg_sleep%%' "
            "AND state = 'active' AND datname = current_database()"
        ).fetchone():
            assert run.poll() is None
        user.execute("""SELECT FROM "the shop's".items""")
    said = finish(run).err
    assert 'AccessExclusiveLock on table "the shop\'s".items, which blocks reads and writes: 1 session waited' in said


CLOSES = """
def code(apps, editor):
    editor.connection.close()
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        print("limit:", *cursor.fetchone())
"""
POOL = "DATABASES['default']['OPTIONS'] = {'pool': {'min_size': 1, 'max_size': 2}}"


def test_a_pool_keeps_no_session_of_a_run(shop, scratch):
    shop.settings(POOL)
    shop.write("0002_closes", "migrations.RunPython(code), migrations.RunSQL('SELECT 1')", "atomic = False")
    file = shop.migrations / "0002_closes.py"
    file.write_text(CLOSES + file.read_text())
    said = shop.succeed("migrate")
    assert said.count("Waiting") == 0
    assert "Run 1 succeeded: 2 steps" in said


def test_every_command_works_without_autocommit(shop, scratch):
    shop.settings("DATABASES['default']['AUTOCOMMIT'] = False")
    assert "shop.0001_items" in shop.succeed("migrate", "--plan")
    shop.succeed("migrate")
    assert "[X] 0001_items" in shop.succeed("showmigrations")
    assert "shop.0001_items" in shop.succeed("rollback", "--plan")
    shop.succeed("rollback", "--yes", "--all")
    assert ("shop", "0001_items") not in MigrationRecorder(scratch).applied_migrations()


def test_what_is_migrated_is_committed_whatever_the_settings_say(shop, scratch):
    shop.settings("DATABASES['default']['AUTOCOMMIT'] = False")
    shop.write("0002_size", 'column("items", "size")', "atomic = False")
    shop.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute("SELECT count(size) FROM items")
    assert MigrationRecorder(scratch).applied_migrations().keys() >= {("shop", "0001_items"), ("shop", "0002_size")}
