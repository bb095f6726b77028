"""What is a migration kept from? It has a time limit, reaches no network and prints nothing.

Sockets of Python and connections of psycopg are refused. Other libraries in C and programs that a migration starts are
not.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from django.db import connections
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict

from ..stages import Key


class Watch:
    """Reports what the linter does, if it runs in a child process."""

    at: Key | None = None

    def tell(self, *said: Any) -> None:
        """Report something that JSON can carry."""

    def begin(self, key: Key) -> None:
        """Report that this migration runs from now on."""
        self.at = key
        self.tell("at", *key)

    def go_on(self, doing: str) -> None:
        """Report what the linter does from now on, for no migration."""
        self.at = None
        self.tell("doing", doing)


watch = Watch()


class TooLong(KeyboardInterrupt):
    """A migration did not end in time. As with Ctrl-C, no ``except Exception`` of its own catches this."""


class NetworkRefused(ConnectionRefusedError):
    """A migration tried to reach the network."""


@contextmanager
def sandboxed(limit: float) -> Iterator[None]:
    """In the block, stop what takes longer than ``limit`` seconds, discard output, and refuse the network.

    Python interrupts its main thread only. In other threads, only the limit of statements holds.
    """

    def stop(*_: Any) -> None:
        raise TooLong

    def refuse(*_: Any) -> None:
        raise NetworkRefused("The linter lets no migration reach the network.")

    connect, hosts = generators.connect, {entry["HOST"] for entry in connections.settings.values()}

    def connect_here(conninfo: str, **more: Any) -> Any:
        if conninfo_to_dict(conninfo).get("host", "") not in hosts:
            refuse()
        return connect(conninfo, **more)

    with ExitStack() as stack:
        stack.callback(os.chdir, Path.cwd())
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        if _can_be_interrupted():
            stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, stop))
            stack.callback(allow, 0)
        allow(limit)
        for name in ("connect", "connect_ex"):  # deleting ours brings those of C back
            setattr(socket.socket, name, refuse)
            stack.callback(delattr, socket.socket, name)
        generators.connect = connect_here  # psycopg's sockets are libpq's
        stack.callback(setattr, generators, "connect", connect)
        yield


def _can_be_interrupted() -> bool:
    return threading.current_thread() is threading.main_thread()


def allow(seconds: float, operation: int = 0) -> None:
    """Start the time limit again, for this operation; 0 ends it."""
    watch.tell("allowed", seconds, operation)
    if _can_be_interrupted():
        signal.setitimer(signal.ITIMER_REAL, seconds)


def call(run: Callable[..., object], *arguments: Any) -> None:
    """Call code of a migration. If the code forks, the copy of this process ends here."""
    process = os.getpid()
    try:
        run(*arguments)
    finally:
        if os.getpid() != process:
            os._exit(0)
