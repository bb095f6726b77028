"""Does one server serve all its users, end with the last, and survive accidents?"""

import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gotong_royong import embedded
from tests.embedded.conftest import (
    AS_NOBODY,
    NOBODY,
    PROJECT,
    REFUSED,
    environment,
    kill_server,
    python,
    server,
    servers,
)

pytestmark = [pytest.mark.once, pytest.mark.slow]

# Starting and stopping


def test_data_are_kept_over_stop_and_start(folder, use):
    user = use(folder)
    assert user.sql("SHOW server_version").startswith("18.")
    user.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    user.end()
    assert not servers(folder)
    assert "database system is shut down" in (folder / "pg/18/server.log").read_text()

    user = use(folder)
    assert user.sql("SELECT answer FROM kept") == "42"
    assert "not properly shut down" not in (folder / "pg/18/server.log").read_text()
    user.end()
    assert not servers(folder)


def test_django_gets_a_durable_server_that_nobody_else_can_reach(shared, use):
    user = use(shared)
    assert user.ask("database") == str(
        {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "gotong_royong",
            "USER": "postgres",
            "HOST": f"{shared}/pg/18",
            "PORT": "5432",
        }
    )
    assert user.ask("embedded.start() == database") == "True"
    assert [user.sql(f"SHOW {name}") for name in ("fsync", "full_page_writes", "synchronous_commit")] == ["on"] * 3
    assert user.sql("SHOW listen_addresses") == ""
    log = (shared / "pg/18/server.log").read_text()
    assert re.findall("listening on (.*)", log) == [f'Unix socket "{shared}/pg/18/.s.PGSQL.5432"']
    assert stat.S_IMODE((shared / "pg/18").stat().st_mode) == 0o700
    user.end()


def test_version_16(folder, use):
    user = use(folder, EMBEDDED_POSTGRES_VERSION="16")
    assert user.sql("SHOW server_version").startswith("16.")
    assert user.ask("str(embedded.binaries())").endswith("/pginstall/bin")
    assert user.sql("SELECT lower('É')") == "é"
    user.end()
    assert [path.name for path in (folder / "pg").iterdir() if path.is_dir()] == ["16"]


@pytest.mark.parametrize("version", ["16", "18"])
def test_binaries_are_of_the_configured_version(version, monkeypatch):
    monkeypatch.setenv("EMBEDDED_POSTGRES_VERSION", version)
    for program in ("pg_dump", "pg_restore", "pgbench", "pg_basebackup"):
        said = subprocess.run([embedded.binaries() / program, "--version"], capture_output=True, text=True, check=True)
        assert f"(PostgreSQL) {version}." in said.stdout


def test_the_environment_of_other_servers_does_not_matter(folder, use):
    user = use(folder, PGPORT="6543", PGDATA=str(folder), PGUSER="somebody", LC_ALL="xx_YY.UTF-8", LANG="xx_YY.UTF-8")
    assert user.sql("SELECT lower('É')") == "é"
    user.end()


@pytest.mark.parametrize("name", ["d" * 120, "two words, it's a comma"])
def test_a_path_that_cannot_hold_a_socket(shared, use, name):
    (shared / "pg").rename(shared / name)
    variables = {"EMBEDDED_POSTGRES_DIR": str(shared / name), "TMPDIR": str(shared)}
    try:
        user = use(shared, **variables)
        sockets = Path(user.ask("database['HOST']"))
        assert sockets.parent == shared
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        assert user.sql("SELECT 1") == "1"
        user.end()

        sockets.rmdir()
        sockets.symlink_to("/")
        done = python(shared, REFUSED, **variables)
        assert f"somebody else made {sockets}, where its socket should be; remove it (rm -r '{sockets}')" in done.stdout
    finally:
        (shared / name).rename(shared / "pg")


@pytest.mark.parametrize("name", ['$HOME\'s `id` "$(touch x)" \\\\ #;&|', "a%s %d", " spaces ", "ünï"])
def test_no_shell_reads_a_path(shared, use, name):
    (shared / "pg").rename(shared / name)
    try:
        user = use(shared, EMBEDDED_POSTGRES_DIR=str(shared / name))
        assert user.sql("SELECT 1") == "1"
        user.end()
    finally:
        (shared / name).rename(shared / "pg")


def test_programs_may_stand_anywhere(folder, use):
    """Copies of them, in a folder whose name is a command."""
    wheel = Path(embedded.binaries()).parent.parent
    strange = folder / '$(touch read-by-a-shell) "x" `id`'
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(part, strange / part.name, symlinks=True)
    user = use(folder, PYTHONPATH=f"{strange}{os.pathsep}{PROJECT}")
    assert str(strange) in user.ask("embedded.binaries()")
    assert user.sql("SELECT 1") == "1"
    user.end()
    assert not [path for path in (folder, Path("/"), PROJECT) if (path / "read-by-a-shell").exists()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_and_then_root(folder, use):
    os.chown(folder, NOBODY, NOBODY)
    done = python(folder, f"{AS_NOBODY}embedded.PATIENCE = 60; print(embedded.start()['HOST'])")
    assert (done.stdout, done.stderr) == (f"{folder}/pg/18\n", "")
    use(folder).end()
    assert {path.stat().st_uid for path in (folder / "pg").rglob("*")} == {NOBODY}
    assert python(folder, f"{AS_NOBODY}embedded.start()").returncode == 0


# Sharing


def test_the_last_user_stops_the_server(shared, use):
    first, second = use(shared), use(shared)
    process = server(shared)
    first.end()
    assert servers(shared) == [process]
    assert second.sql("SELECT 1") == "1"
    second.end()
    assert not servers(shared)


def test_six_at_once_on_a_fresh_folder(folder, use):
    (folder / "pg/18.unfinished/base").mkdir(parents=True)  # somebody else's first start was killed
    users = [use(folder, wait=False) for _ in range(6)]
    for user in users:
        user.wait()
    process = server(folder)
    users[0].sql("CREATE TABLE shared (n int)")
    for user in users:
        user.sql("INSERT INTO shared VALUES (1)")
    assert users[-1].sql("SELECT count(*) FROM shared") == "6"
    assert servers(folder) == [process]
    for user in users:
        user.end()
    assert not servers(folder)
    assert sorted(path.name for path in (folder / "pg").iterdir()) == ["18", "18.lock", "18.users"]


def test_nobody_gets_a_server_that_is_about_to_stop(shared):
    """Processes come and go without a pause, so that some start while others stop."""
    code = """
        import atexit
        import psycopg
        from gotong_royong import embedded
        embedded.PATIENCE = 60
        for _ in range(8):
            database = embedded.start()
            with psycopg.connect(host=database["HOST"], user=database["USER"], dbname=database["NAME"]) as connection:
                connection.execute("SELECT 1")
            atexit._run_exitfuncs()
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment(shared),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 3
    assert "shut down" in (shared / "pg/18/server.log.1").read_text()


def test_a_killed_user_does_not_count(shared, use):
    killed = use(shared)
    process = server(shared)
    killed.kill()
    next_user = use(shared)
    assert servers(shared) == [process]
    next_user.end()
    assert not servers(shared)


def test_a_forked_child_ends_first(shared, use):
    user = use(shared)
    process = server(shared)
    assert user.ask("fork()") == "0"
    assert servers(shared) == [process]
    assert user.sql("SELECT 1") == "1"
    user.end()
    assert not servers(shared)


def test_a_forked_child_ends_last(shared):
    done = python(
        shared,
        """
        import os, sys, time
        import psycopg
        from gotong_royong import embedded
        embedded.PATIENCE = 60
        database, parent = embedded.start(), os.getpid()
        if os.fork():
            sys.exit()
        while os.getppid() == parent:
            time.sleep(0.01)
        psycopg.connect(host=database["HOST"], user="postgres", dbname=database["NAME"]).close()
        print("served")
        """,
    )
    assert (done.stdout, done.stderr) == ("served\n", "")
    deadline = time.monotonic() + 10
    while servers(shared):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_does_not_reach_the_server(shared, use):
    user = use(shared)
    process = server(shared)
    os.killpg(user.process.pid, signal.SIGINT)
    assert user.line() == "interrupted"
    assert user.sql("SELECT 1") == "1"
    assert servers(shared) == [process]
    user.end()


def test_waiting_for_others_is_said(folder):
    (folder / "pg").mkdir()
    with (folder / "pg/18.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = "from gotong_royong import embedded; embedded.PATIENCE = 0.01; print(embedded.start()['NAME'])"
        waiting = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = waiting.stderr.readline()
    output, rest = waiting.communicate(timeout=60)
    assert said.startswith("Still waiting for another process to start or stop the embedded PostgreSQL")
    assert "Still waiting for the data folder to be made" in rest  # longer than its patience, and yet
    assert (waiting.returncode, output) == (0, "gotong_royong\n")


# Accidents


def test_a_killed_server_starts_again(shared, use):
    user, busy = use(shared), use(shared)
    user.sql("CREATE TABLE kept_by_one AS SELECT 42 AS answer")
    busy.send("sql('SELECT count(*) FROM generate_series(1, 3000000)')")
    time.sleep(0.1)  # so that this goes on when the server is dead
    kill_server(shared)
    again = use(shared)
    assert again.sql("SELECT answer FROM kept_by_one") == "42"
    assert user.sql("SELECT answer FROM kept_by_one") == "42"
    busy.kill()
    user.end()
    again.end()


def test_everybody_was_killed_and_the_process_id_is_in_use(shared, use, neighbor):
    user, pid = use(shared), server(shared).pid
    user.sql("CREATE TABLE kept_by_none AS SELECT 42 AS answer")
    kill_server(shared)
    user.kill()
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        lock = shared / "pg/18" / name
        lock.write_text(lock.read_text().replace(str(pid), str(neighbor.pid), 1))
    again = use(shared)
    assert again.sql("SELECT answer FROM kept_by_none") == "42"
    again.end()
    assert neighbor.poll() is None


def test_the_folder_was_removed_under_its_user(folder, use):
    old = use(folder)
    shutil.rmtree(folder / "pg")
    new = use(folder)
    old.end()
    assert new.sql("SELECT 1") == "1"
    new.end()
    assert not servers(folder)


def test_a_copy_of_a_folder_in_use_is_served_by_itself(shared, folder, use):
    user = use(shared)
    user.sql("CREATE TABLE kept_twice AS SELECT 42 AS answer")
    subprocess.run(["/bin/cp", "-a", shared / "pg", folder], check=True)
    other = use(folder)
    assert other.ask("database['HOST']") == f"{folder}/pg/18"
    assert other.sql("SELECT answer FROM kept_twice") == "42"
    other.end()
    assert user.sql("SELECT 1") == "1"
    user.end()
