"""What if a migration ends its process, or never ends? It is run in a process of its own, which another one watches.

The child tells, line by line, which migration it is at, how long that may take, and what it has found. Where it is gone
or late, the parent kills it with all that it began, blames the migration, and begins another child, which leaves that
one out, and only runs up what has its verdict already. What the linter itself fails on is left out the same way.

Between the two is a keeper: it ends the child and all that the child began, once the parent is gone, however that went.
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

GRACE = 3.0  # seconds after which the parent does what the child has not done itself
SILENCE = 300.0  # seconds that loading a migration or anything of ours may take
LOOK = 0.2  # seconds between two looks whether it is there, for what it has begun may hold its pipe open
PAUSE = 0.005  # seconds
ADOPT = 36  # prctl's PR_SET_CHILD_SUBREAPER, of Linux: what leaves its parents becomes ours
MEMORY = 0.5  # of the machine's

Work = Callable[[Mapping[Key, Failure], Collection[Key], Callable[[], Any]], Iterator[tuple[Key, Failure | None, Any]]]


def apart(work: Work, answer: Callable[[], Any]) -> Generator[Any]:
    """Yield what ``work`` finds about each migration, in a process of its own, and as JSON lets it through.

    Args:
        work: is given the migrations that cannot be run, why, those that need no verdict any more, and a function that
            asks for the ``answer``. It yields each migration, why it came to no end on its way up, and what is found.
        answer: is called here, at most once.

    Raises:
        ZeroDowntimeError: if it fails where no migration can be left out.
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
                    if failure and failure["environment"]:  # it may have taken all the time that it had
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
    """Make an error of the same kind as the child's, or of one that it could not raise itself."""
    if not kind and doing:
        why = f"While {doing}: {why[0].lower()}{why[1:]}"
    found = getattr(exceptions, kind, CommandError if kind else ZeroDowntimeError)
    error: CommandError = found.__new__(found)
    CommandError.__init__(error, why)
    error.__cause__ = RuntimeError(trace) if trace else None
    return error


class _Child:
    """A process that works, as its parent sees it.

    Attributes:
        at: the migration that it is at, and ``operation`` which of it.
        doing: what it does where it is at none.
    """

    def __init__(self, work: Work, stopped: Mapping[Key, Failure], told: Collection[Key]) -> None:
        self.at: Key | None = None
        self.operation, self.doing, self._limit, self._ended = 0, "", SILENCE, False
        self._mark = secrets.token_hex().encode()  # what else is written into the pipe is no report
        self._pipe, said = os.pipe()
        asked, self._answer = os.pipe()
        alive, self._alive = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: the child has but this one
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
        """Yield what it tells, and, where it does not end as it should, at last that it was stopped, and why."""
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
                time.sleep(PAUSE)  # it has closed its pipe, and ends

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
        """End it, and what it has begun and left."""
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
    """Be the keeper of a process that does this work: end as it ends, and end it when the parent lets go or is gone."""
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
            for children in Path("/proc/self/task").glob("*/children"):  # also those in sessions of their own
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
    """Be the child: tell what is found, and why there is no more."""
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
    for file in (0, 1, 2, *sessions):  # those are the parent's
        os.dup2(nothing, file)
    watch.tell = tell  # type: ignore[method-assign]
    try:
        for key, failure, found in work(stopped, set(told), ask):
            tell("found", key, failure and asdict(failure), found)
        tell("end")
    except BaseException as error:  # noqa: BLE001  (whatever it is, the parent says it)
        why = sentence(error) if watch.at is None else f"The linter fails on it: {summary(error)}."
        tell("stopped", why or summary(error), True, type(error).__name__, traceback.format_exc())
