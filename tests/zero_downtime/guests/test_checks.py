"""Does a project that the engine does not fit hear so from manage.py check, with what to do, without a traceback?"""

import socket
import threading
from contextlib import closing, suppress

import pytest
from django.core.checks import run_checks
from django.db import connection

from gotong_royong.zero_downtime.checks import HERE
from gotong_royong.zero_downtime.models import Run
from tests.databases import conninfo
from tests.zero_downtime.guests.test_commands import complaints

pytestmark = [pytest.mark.once, pytest.mark.newest]

NUMBER = len([*HERE.glob("migrations/2*.py")])
SQLITE = """
DATABASES["default"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["FOLDER"] + "/db.sqlite3"}
"""
ADMIN = """
INSTALLED_APPS += ["django.contrib." + name for name in "admin auth contenttypes messages sessions".split()]
MIDDLEWARE = ["django.contrib." + name for name in (
    "sessions.middleware.SessionMiddleware", "auth.middleware.AuthenticationMiddleware",
    "messages.middleware.MessageMiddleware",
)]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"context_processors": [
    "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
]}}]
"""
ITEM = """migrations.CreateModel("Item", [
    ("id", models.IntegerField(primary_key=True, serialize=False)),
], {"db_table": "items"})"""


def without_psycopg(shop):
    (shop.folder / "sitecustomize.py").write_text("import sys\nsys.modules['psycopg'] = None\n")
    return {"PYTHONPATH": shop.environment["PYTHONPATH"]}


def test_without_psycopg_3_all_is_djangos_and_a_check_says_so(shop):
    shop.settings((SQLITE + ADMIN).replace('os.environ["FOLDER"]', repr(str(shop.folder))))
    shop.write("0001_items", ITEM)
    environment = without_psycopg(shop)
    for command in ("check", "migrate"):
        done = shop.run(command, **environment)
        assert done.code == 1
        assert "(zero_downtime.E001) psycopg 3 cannot be imported" in done.err
        assert "HINT: pip install 'psycopg[binary]'" in done.err
        assert "Traceback" not in done.err


@pytest.fixture
def lite(shop):
    """A shop whose default database is SQLite, and whose other one is PostgreSQL."""
    path = str(shop.folder / "db.sqlite3")
    shop.lite = 'DATABASES["pg"] = DATABASES["default"]\n' + SQLITE.replace(
        'os.environ["FOLDER"] + "/db.sqlite3"', repr(path)
    )
    shop.settings(shop.lite)
    shop.write("0001_items", ITEM)
    shop.models(
        "class Item(models.Model):\n    id = models.IntegerField(primary_key=True)\n"
        '    class Meta:\n        db_table = "items"\n'
    )
    return shop


def test_no_postgresql_is_said_once(lite):
    lite.settings(lite.lite + 'del DATABASES["pg"]\n')
    ids, said = complaints(lite)
    assert ids == ["zero_downtime.W004"]
    assert "HINT: Remove 'gotong_royong.zero_downtime' from INSTALLED_APPS" in said


def test_on_another_engine_the_commands_are_djangos(lite, scratch):
    assert complaints(lite)[0] == []
    assert lite.succeed("makemigrations", "--check") == "No changes detected\n"
    said = lite.succeed("migrate")
    assert "neither guarded nor recorded: default is not a PostgreSQL database" in said
    assert "Applying shop.0001_items... OK" in said
    assert "[X] 0001_items" in lite.succeed("showmigrations")
    assert "DROP TABLE" in lite.succeed("migrate", "shop", "zero", "--plan")
    lite.succeed("migrate", "shop", "zero")
    assert "[ ] 0001_items" in lite.succeed("showmigrations")
    assert "default is not a PostgreSQL database, so no run" in lite.fail("rollback")
    assert "Database 'default' is not PostgreSQL" in lite.fail("lintmigrations")
    lite.succeed("migrate", "--database", "pg")
    assert Run.objects.using(scratch.alias).get().steps.count() == 1
    assert "run 1" in lite.succeed("showmigrations", "--database", "pg")
    assert "shop.0001_items" in lite.succeed("rollback", "--yes", "--all", "--database", "pg")


def test_a_backup_that_cannot_be_made_is_refused(lite, tmp_path):
    assert "No backup: default is not a PostgreSQL database" in lite.fail("migrate", "--backup", str(tmp_path))
    assert "[ ] 0001_items" in lite.succeed("showmigrations")


@pytest.fixture
def old(scratch):
    """Pass for a server of PostgreSQL 13: a proxy on loopback that says so in place of the real one."""
    real, ours = conninfo(scratch), f"{scratch.pg_version // 10000}".encode()

    def pump(source, target):
        with closing(target), suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data.replace(b"server_version\0" + ours, b"server_version\x0013"))

    def serve():
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            host, port = real.get("host", "localhost"), int(real.get("port", 5432))
            server = socket.socket(socket.AF_UNIX if host.startswith("/") else socket.AF_INET)
            server.connect(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
            for way in ((client, server), (server, client)):
                threading.Thread(target=pump, args=way, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_too_old(shop, old):
    oldest = connection.features.minimum_database_version[0]  # Django 6.1 wants PostgreSQL 15
    shop.settings(
        f'DATABASES["default"] |= {{"HOST": "127.0.0.1", "PORT": {old}, "OPTIONS": {{"sslmode": "disable"}}}}\n'
    )
    assert complaints(shop)[0] == []
    done = shop.run("check", "--database", "default")
    assert done.code == 1
    assert f"(zero_downtime.E002) Database 'default': PostgreSQL {oldest} or later is required (found 13" in done.err
    assert "HINT: Upgrade the server" in done.err
    assert "Traceback" not in done.err
    assert f"PostgreSQL {oldest} or later is required" in shop.fail("migrate")


def test_a_server_that_is_not_there_is_not_for_the_check_to_name(shop):
    shop.settings('DATABASES["default"] |= {"HOST": "127.0.0.1", "PORT": 1}\n')
    assert "no issues" in shop.succeed("check", "--database", "default")


@pytest.mark.parametrize(("modules", "number"), [("None", NUMBER), ("'elsewhere'", NUMBER - 1), ("'nowhere'", NUMBER)])
def test_migrations_of_ours_that_are_taken_away(shop, modules, number):
    (shop.folder / "elsewhere").mkdir()
    (shop.folder / "elsewhere" / "__init__.py").touch()
    (shop.folder / "elsewhere" / "20260211000000_create_zero_downtime_run_and_step_tables.py").touch()
    shop.settings(f"MIGRATION_MODULES = {{'zero_downtime': {modules}}}\n")
    ids, said = complaints(shop)
    assert ids == ["zero_downtime.W005"]
    assert f"takes {number} of the migrations of gotong_royong.zero_downtime away, from 2026021" in said


def test_a_project_that_fits_hears_nothing(shop):
    shop.settings(ADMIN + "ROOT_URLCONF = 'shop.urls'\n")
    (shop.folder / "shop" / "urls.py").write_text("urlpatterns = []\n")
    assert "no issues" in shop.succeed("check", "--database", "default")
    assert "No changes detected" in shop.succeed("makemigrations", "--check", "zero_downtime")


def test_where_tests_override_the_installed_apps_nothing_is_said(settings):
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "gotong_royong.zero_downtime"]
    assert [each for each in run_checks() if "zero_downtime" in each.id] == []
