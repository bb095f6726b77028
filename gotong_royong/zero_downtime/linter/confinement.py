"""What can a migration do to whoever runs it? It ends when its time is over, reaches no network, prints nothing.

Programs that it starts and libraries with sockets of their own, as psycopg has, are not held back.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from typing import Any


class TooLong(KeyboardInterrupt):
    """A migration did not end in time; like Ctrl-C, no ``except Exception`` of its own catches that."""


class NetworkRefused(ConnectionRefusedError):
    """A migration wanted to reach the network."""


@contextmanager
def confined(limit: float) -> Iterator[None]:
    """Let nothing last longer than ``limit`` seconds, print, or reach the network.

    Python can be interrupted in its main thread only; elsewhere only the statements' own limit holds.
    """

    def stop(*_: Any) -> None:
        raise TooLong

    def refuse(*_: Any) -> None:
        raise NetworkRefused("The linter lets no migration reach the network.")

    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(StringIO()))
        if _can_be_interrupted():
            stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, stop))
            stack.callback(allow, 0)
        allow(limit)
        for name in ("connect", "connect_ex"):  # inherited from C, so that they are there again once ours are gone
            setattr(socket.socket, name, refuse)
            stack.callback(delattr, socket.socket, name)
        yield


def _can_be_interrupted() -> bool:
    return threading.current_thread() is threading.main_thread()


def allow(seconds: float) -> None:
    """Begin to count anew; 0 ends the counting."""
    if _can_be_interrupted():
        signal.setitimer(signal.ITIMER_REAL, seconds)
