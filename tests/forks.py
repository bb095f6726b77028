"""Django's command line in a process of its own, in a tenth of the time: a fork of one that has imported Django.

``Forked`` is used as a ``subprocess.Popen`` whose output and errors are pipes. ``python -m tests.forks FD`` is what is
forked; it imports nothing of ours, and nothing that needs settings. Each process has a keeper, who waits for its end.
"""

import atexit
import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from typing import IO

PROJECT = Path(__file__).resolve().parent.parent
IMPORTED = [
    "dj_database_url",
    "psycopg",
    "rich.console",
    "rich.live",
    "rich.progress",
    "rich.table",
    "sqlparse",
    "django.core.management",
    "django.core.management.commands.makemigrations",
    "django.core.management.commands.migrate",
    "django.core.management.sql",
    "django.core.serializers.json",
    "django.db.backends.postgresql.base",
    "django.db.backends.postgresql.psycopg_any",
    "django.db.migrations.autodetector",
    "django.db.migrations.executor",
    "django.contrib.postgres.fields",
    "django.contrib.postgres.indexes",
    "django.contrib.postgres.operations",
    "django.forms",
    "django.template.backends.django",
    "django.test.utils",
    "django.urls",
    "django.views.debug",
]


class Forked:
    """A process of Python. On SIGUSR1 it writes to its errors where each of its threads is.

    Args:
        arguments: what comes after ``python``, such as ``"-m", "django", "migrate"`` or ``"manage.py", "migrate"``.
        env: all of its environment; what Python itself would read of it is left unread, but for PYTHONPATH.
    """

    def __init__(self, *arguments: str, env: Mapping[str, str], cwd: Path) -> None:
        (status, told), (out, written), (err, warned) = os.pipe(), os.pipe(), os.pipe()
        order = json.dumps({"arguments": arguments, "env": dict(env), "cwd": str(cwd)})
        socket.send_fds(_parent(), [order.encode()], [told, written, warned])
        for theirs in (told, written, warned):
            os.close(theirs)
        self.stdout, self.stderr, self._status = os.fdopen(out), os.fdopen(err), os.fdopen(status)
        self._readers, self._told = dict[IO[str], threading.Thread](), dict[IO[str], str]()
        self.args, self.pid, self.returncode = arguments, int(self._status.readline()), None

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._end(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it writes until it ends; may be called again after it took too long."""
        for file in {self.stdout, self.stderr} - self._readers.keys():
            self._readers[file] = reader = threading.Thread(target=self._read, args=[file], daemon=True)
            reader.start()
        for reader in self._readers.values():
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return self._told[self.stdout], self._told[self.stderr]

    def _read(self, file: IO[str]) -> None:
        with file:
            self._told[file] = file.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def manage(*arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run our ``manage.py`` to its end, a minute at most, in such an environment."""
    process = Forked("manage.py", *arguments, env=env, cwd=PROJECT)
    try:
        out, err = process.communicate(60)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@cache
def _parent() -> socket.socket:
    """Begin the process that is forked, which ends with this one; return where it takes its orders."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=PROJECT,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(orders: socket.socket) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        order, (*files,) = socket.recv_fds(orders, 2**20, 3)[:2]
        if not order:
            return
        if not os.fork():
            orders.close()
            keep(json.loads(order), *files)
            return
        for file in files:
            os.close(file)


def keep(order: dict[str, object], told: int, out: int, err: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if process := os.fork():
        os.close(out)
        os.close(err)
        os.write(told, f"{process}\n".encode())
        os.write(told, f"{os.waitpid(process, 0)[1]}\n".encode())
        os._exit(0)
    os.close(told)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, sys.__stderr__)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    here = ("", str(PROJECT))
    path = os.environ.get("PYTHONPATH", "")
    sys.path[:] = [order["cwd"], *path.split(os.pathsep), *(entry for entry in sys.path if entry not in here)]
    is_module = order["arguments"][0] == "-m"
    program, *sys.argv[1:] = order["arguments"][is_module:]
    if is_module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    for module in IMPORTED:
        import_module(module)
    gc.freeze()  # or each fork looks through all that, and copies the pages that it stands on
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel)
