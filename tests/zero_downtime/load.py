"""People who use a table while it is migrated: each on a connection of its own, each remembers its longest wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

WARM_UP = 0.2  # seconds


class Victim(threading.Thread):
    """Runs one statement after the other, each a transaction of its own, and keeps the longest time of one."""

    def __init__(self, conninfo: dict[str, Any], statement: str) -> None:
        super().__init__(daemon=True)
        self.conninfo, self.statement = conninfo, statement
        self.longest, self.count = 0.0, 0
        self.error: Exception | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(**self.conninfo, autocommit=True, application_name="victim") as connection:
            while not self.stop.is_set():
                started = time.monotonic()
                try:
                    connection.execute(self.statement)
                except psycopg.Error as error:
                    self.error = error
                    return
                self.longest = max(self.longest, time.monotonic() - started)
                self.count += 1
                time.sleep(0.002)


@contextmanager
def load(conninfo: dict[str, Any], *statements: str) -> Iterator[list[Victim]]:
    """Run a victim for each statement during the block."""
    victims = [Victim(conninfo, statement) for statement in statements]
    for victim in victims:
        victim.start()
    time.sleep(WARM_UP)
    try:
        yield victims
    finally:
        for victim in victims:
            victim.stop.set()
        for victim in victims:
            victim.join()
    for victim in victims:
        assert victim.error is None, victim.error


@contextmanager
def holding(conninfo: dict[str, Any], statement: str, seconds: float) -> Iterator[None]:
    """Keep the locks of ``statement`` in an idle transaction until ``seconds`` have passed."""
    held = threading.Event()

    def hold() -> None:
        with psycopg.connect(**conninfo, application_name="holder") as connection:
            connection.execute(statement)
            held.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        thread.join()
