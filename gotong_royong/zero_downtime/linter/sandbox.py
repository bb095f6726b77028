"""What can a migration do to whoever runs it? It ends when its time is over, reaches no network, prints nothing.

Programs that it starts and libraries with sockets of their own are not held back; psycopg, which has such, is.
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
    """Whom the linter tells where it is, if it runs apart."""

    at: Key | None = None

    def tell(self, *said: Any) -> None:
        """Say something, as JSON lets it through."""

    def begin(self, key: Key) -> None:
        """Say that what comes is the doing of this migration."""
        self.at = key
        self.tell("at", *key)

    def go_on(self, doing: str) -> None:
        """Say that what comes is the doing of no migration."""
        self.at = None
        self.tell("doing", doing)


watch = Watch()


class TooLong(KeyboardInterrupt):
    """A migration did not end in time; like Ctrl-C, no ``except Exception`` of its own catches that."""


class NetworkRefused(ConnectionRefusedError):
    """A migration wanted to reach the network."""


@contextmanager
def sandboxed(limit: float) -> Iterator[None]:
    """Let nothing last longer than ``limit`` seconds, print, or reach the network.

    Python can be interrupted in its main thread only; elsewhere only the statements' own limit holds.
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
        for name in ("connect", "connect_ex"):  # inherited from C, so that they are there again once ours are gone
            setattr(socket.socket, name, refuse)
            stack.callback(delattr, socket.socket, name)
        generators.connect = connect_here  # psycopg's sockets are libpq's
        stack.callback(setattr, generators, "connect", connect)
        yield


def _can_be_interrupted() -> bool:
    return threading.current_thread() is threading.main_thread()


def allow(seconds: float, operation: int = 0) -> None:
    """Begin to count anew, for this operation; 0 ends the counting."""
    watch.tell("allowed", seconds, operation)
    if _can_be_interrupted():
        signal.setitimer(signal.ITIMER_REAL, seconds)


def call(run: Callable[..., object], *arguments: Any) -> None:
    """Call code of a migration; a copy of this process that it makes and does not end itself ends there."""
    process = os.getpid()
    try:
        run(*arguments)
    finally:
        if os.getpid() != process:
            os._exit(0)
