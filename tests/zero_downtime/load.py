"""People who use a table while it is migrated: each on a connection of its own, each remembers its longest wait."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg

WARM_UP = 0.2  # seconds
TICK, LATE = 0.01, 0.02  # seconds that the clock sleeps, and by which it may wake late because others are at work

# https://www.postgresql.org/docs/current/functions-info.html
WAITS_FOR = "SELECT FROM pg_locks WHERE NOT granted AND %s = ANY(pg_blocking_pids(pid))"


class Clock(threading.Thread):
    """Stands still while the machine does, which it sees from how much it oversleeps.

    No lock of a database holds it up, nor does another thread that is at work, for Python lets others have their turn
    every 5 ms. So what it loses is no part of what anybody waits for a lock.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._last = 0.0, time.monotonic() + TICK  # what was lost before it fell asleep, and when it is to wake

    def run(self) -> None:
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            self._last = self.lost(now), now + TICK

    def lost(self, now: float | None = None) -> float:
        """Return for how many seconds it has stood still until now."""
        now = time.monotonic() if now is None else now
        lost, due = self._last
        return lost + max(0.0, now - due - LATE)

    def time(self) -> float:
        now = time.monotonic()
        return now - self.lost(now)

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Wait for the event, until so many seconds of this clock have passed."""
        until = self.time() + seconds
        while self.time() < until and not event.wait(TICK):
            pass


@cache
def clock() -> Clock:
    """Return the clock of this process."""
    started = Clock()
    started.start()
    return started


class Victim(threading.Thread):
    """Runs one statement after the other, each a transaction of its own, and keeps the longest time of one.

    That time is of the clock that stands still while the machine does.
    """

    def __init__(self, conninfo: dict[str, Any], statement: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.conninfo, self.statement, self.pause, self.clock = conninfo, statement, pause, clock()
        self.longest, self.count = 0.0, 0
        self.error: Exception | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        with psycopg.connect(**self.conninfo, autocommit=True, application_name="victim") as connection:
            while not self.stop.is_set():
                started = self.clock.time()
                try:
                    connection.execute(self.statement)
                except psycopg.errors.UndefinedTable:  # it was dropped
                    return
                except psycopg.Error as error:
                    self.error = error
                    return
                finally:
                    self.longest = max(self.longest, self.clock.time() - started)
                self.count += 1
                time.sleep(self.pause)


@contextmanager
def load(conninfo: dict[str, Any], *statements: str, pause: float = 0.002) -> Iterator[list[Victim]]:
    """Run a victim for each statement during the block, with so many seconds between two of its statements."""
    victims = [Victim(conninfo, statement, pause) for statement in statements]
    for victim in victims:
        victim.start()
    time.sleep(WARM_UP)
    while any(victim.is_alive() and not victim.count for victim in victims):
        time.sleep(TICK)
    for victim in victims:
        victim.longest = 0.0  # that of its first statement
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
def holding(
    conninfo: dict[str, Any], statement: str, seconds: float, *, from_first_wait: bool = False
) -> Iterator[threading.Event]:
    """Keep the locks of ``statement`` in an idle transaction until ``seconds`` have passed or the block ends.

    Args:
        from_first_wait: whether the seconds begin only when somebody waits for these locks.

    Yields: what ends it before, once it is set.
    """
    held, over, ticking = threading.Event(), threading.Event(), clock()

    def hold() -> None:
        with psycopg.connect(**conninfo, application_name="holder") as connection:
            connection.execute(statement)
            held.set()
            if from_first_wait:
                wait_for_a_wait(connection.info.backend_pid)
            ticking.wait(over, seconds)

    def wait_for_a_wait(holder: int) -> None:
        with psycopg.connect(**conninfo, application_name="onlooker", autocommit=True) as onlooker:
            while not onlooker.execute(WAITS_FOR, [holder]).rowcount and not over.wait(TICK):
                pass

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    try:
        yield over
    finally:
        over.set()
        thread.join()
