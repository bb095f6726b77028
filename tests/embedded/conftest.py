"""The embedded PostgreSQL: real servers in folders of their own, real processes that use, share and kill them."""

import os
import shutil
import signal
import subprocess
import sys
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
from tests import memory

PROJECT = Path(__file__).resolve().parent.parent.parent
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

embedded.PATIENCE = 60  # on a slow machine, too, there is nothing to complain about
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
    folder = memory.temporary("embedded server ")
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
