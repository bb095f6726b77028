"""What if a migration ends its process, or never ends? A child process runs the migrations, and its parent watches it.

The child reports, line by line, which migration it runs, how long that may take, and what it has found. If the child is
gone or late, the parent kills it and its processes, blames the migration, and starts another child without that
migration. Migrations that have their verdict only run up there. A migration on which the linter itself fails is left
out in the same way.

A keeper process stands between the two. When the parent is gone, it kills the child and the child's processes.
"""

import ctypes
import json
import os
import resource
import secrets
import select
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management import CommandError
from django.db import connections

from .. import exceptions
from ..exceptions import ZeroDowntimeError, summary
from ..running.diagnosis import sentence
from ..stages import Key
from .facts import Failure
from .sandbox import watch

GRACE = 3.0  # seconds that the child has to stop itself before its parent does
SILENCE = 300.0  # seconds that the linter's own work may take, or loading a migration
LOOK = 0.2  # seconds between two checks for the child, because its processes may keep its pipe open
PAUSE = 0.005  # seconds
ADOPT = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl: orphaned descendants become our children
MEMORY = 0.5  # of the machine's

Work = Callable[[Mapping[Key, Failure], Collection[Key], Callable[[], Any]], Iterator[tuple[Key, Failure | None, Any]]]


def apart(work: Work, answer: Callable[[], Any]) -> Generator[Any]:
    """Run ``work`` in a child process; yield what it finds about each migration, as JSON carries it.

    Args:
        work: is called with the migrations that cannot run, and why; with those that need no verdict; and with a
            function that asks for the ``answer``. It yields each migration, why its way up ended early, and what it
            found.
        answer: is called in this process, at most once.

    Raises:
        ZeroDowntimeError: if ``work`` fails and no migration is the reason.
    """
    stopped: dict[Key, Failure] = {}
    told: set[Key] = set()
    answers: list[Any] = []
    while True:
        child = _Child(work, stopped, told)
        try:
            for kind, *said in child.messages():
                if kind == "found":
                    key, failure, found = tuple(said[0]), *said[1:]
                    told.add(key)
                    if failure and failure["environment"]:  # another try might take as long
                        stopped.setdefault(key, Failure(**failure))
                    yield found
                elif kind == "ask":
                    answers = answers or [answer()]
                    child.answer(answers[0])
                elif kind == "end":
                    return
                elif kind == "stopped":
                    if child.at is None or child.at in stopped:
                        raise _error(child.doing, *said)
                    stopped[child.at] = Failure(child.operation, said[0], environment=said[1])
        finally:
            child.kill()


def _error(doing: str, why: str, _: bool, kind: str = "", trace: str = "") -> CommandError:
    """Make an error of the class that the child raised, if the engine or Django's commands know it."""
    if not kind and doing:
        why = f"While {doing}: {why[0].lower()}{why[1:]}"
    found = getattr(exceptions, kind, CommandError if kind else ZeroDowntimeError)
    error: CommandError = found.__new__(found)
    CommandError.__init__(error, why)
    error.__cause__ = RuntimeError(trace) if trace else None
    return error


class _Child:
    """A child process, as its parent sees it.

    Attributes:
        at: the migration that it runs.
        operation: the operation of that.
        doing: what it does while it runs no migration.
    """

    def __init__(self, work: Work, stopped: Mapping[Key, Failure], told: Collection[Key]) -> None:
        self.at: Key | None = None
        self.operation, self.doing, self._limit, self._ended = 0, "", SILENCE, False
        self._mark = secrets.token_hex().encode()  # a line without it is no report
        self._pipe, said = os.pipe()
        asked, self._answer = os.pipe()
        alive, self._alive = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child has only this thread
            self._process = os.fork()
        if not self._process:
            try:
                os.close(self._pipe)
                os.close(self._answer)
                os.close(self._alive)
                _keep(lambda: _work(work, stopped, told, said, asked, self._mark), alive, said, asked)
            finally:
                os._exit(1)
        with suppress(OSError):
            os.setpgid(self._process, self._process)
        for theirs in (said, asked, alive):
            os.close(theirs)

    def messages(self) -> Iterator[list[Any]]:
        """Yield the child's reports. If it ends badly or is late, the last one is ``stopped``, and why."""
        rest, until = b"", time.monotonic() + self._limit
        while True:
            status = self._status()
            ready, _, _ = select.select([self._pipe], [], [], 0 if status is not None else LOOK)
            data = os.read(self._pipe, 2**16) if ready else b""
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not line.startswith(self._mark):
                    yield ["stopped", "It wrote where the linter writes its reports, into a file not its own.", False]
                    return
                message = json.loads(line[len(self._mark) :])
                self._note(*message)
                yield message
                if message[0] in {"stopped", "end"}:
                    return
            if lines:
                until = time.monotonic() + self._limit
            elif status is not None and not data:
                how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
                yield ["stopped", f"It ended the process that ran it ({how}).", False]
                return
            elif time.monotonic() > until:
                late = f"It was stopped after {self._limit - GRACE:g} s, and did not let itself."
                yield ["stopped", late, True]
                return
            elif ready and not data:
                time.sleep(PAUSE)  # it has closed its pipe and is ending

    def _note(self, kind: str, *said: Any) -> None:
        if kind == "at":
            self.at, self.operation, self._limit = (said[0], said[1]), 0, SILENCE
        elif kind == "doing":
            self.at, self.doing, self._limit = None, said[0], SILENCE
        elif kind == "allowed":
            self._limit, self.operation = (said[0] + GRACE if said[0] else SILENCE), said[1]

    def _status(self) -> int | None:
        if not self._ended:
            process, status = os.waitpid(self._process, os.WNOHANG)
            if process:
                self._ended, self._how = True, os.waitstatus_to_exitcode(status)
        return self._how if self._ended else None

    def answer(self, what: Any) -> None:
        with suppress(BrokenPipeError):
            os.write(self._answer, json.dumps(what).encode() + b"\n")

    def kill(self) -> None:
        """End the child and its processes."""
        os.close(self._alive)
        until = time.monotonic() + GRACE
        while self._status() is None and time.monotonic() < until:
            time.sleep(PAUSE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process, signal.SIGKILL)
        if not self._ended:
            os.waitpid(self._process, 0)
        os.close(self._pipe)
        os.close(self._answer)


def _keep(work: Callable[[], None], alive: int, *files: int) -> None:
    """Do the work in a child and end as that ends. Kill it when the parent closes ``alive`` or is gone."""
    os.setpgid(0, 0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(ADOPT, 1)
    child = os.fork()
    if not child:
        os.close(alive)
        work()
        return
    for theirs in files:
        os.close(theirs)

    def end() -> None:
        os.read(alive, 1)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ChildProcessError):
        while True:
            for children in Path("/proc/self/task").glob("*/children"):  # those in other sessions, too
                for process in map(int, children.read_text().split()):
                    os.kill(process, signal.SIGKILL)
            os.waitpid(-1, 0)
    if select.select([alive], [], [], 0)[0]:
        os.killpg(0, signal.SIGKILL)
    if status < 0:
        with suppress(OSError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _work(
    work: Work, stopped: Mapping[Key, Failure], told: Collection[Key], pipe: int, asked: int, mark: bytes
) -> None:
    """Do the work: report what it finds, and why it ends."""
    keeper = os.getppid()

    def tell(*said: Any) -> None:
        if os.getppid() != keeper:
            os._exit(1)
        data = mark + json.dumps(said).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    def ask() -> Any:
        tell("ask")
        with os.fdopen(asked) as answer:
            return json.loads(answer.readline())

    memory = int(MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    nothing = os.open(os.devnull, os.O_RDWR)
    sessions = [one.connection.fileno() for one in connections.all(initialized_only=True) if one.connection]
    for file in (0, 1, 2, *sessions):  # they belong to the parent
        os.dup2(nothing, file)
    watch.tell = tell  # type: ignore[method-assign]
    try:
        for key, failure, found in work(stopped, set(told), ask):
            tell("found", key, failure and asdict(failure), found)
        tell("end")
    except BaseException as error:  # noqa: BLE001  (the parent reports it)
        why = sentence(error) if watch.at is None else f"The linter fails on it: {summary(error)}."
        tell("stopped", why or summary(error), True, type(error).__name__, traceback.format_exc())
