"""Whom does a migration keep waiting, and for how long?

``lock_timeout`` bounds how long our statements wait. Once one has its lock, only a second session can see who waits
for us, and end it: this room is that session, a thread that looks every 20 ms. Nobody can have waited longer than we
have been at it, so it looks that often only once something lasts. Where the thread stands still, ``backstop`` does it.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from gotong_royong.zero_downtime.backstop import IS_A_USER, Backstop
from gotong_royong.zero_downtime.exceptions import BlockedTooLong, Unwatched, ZeroDowntimeError, counted, summary
from gotong_royong.zero_downtime.locks import BLOCKERS, BLOCKS, PUT, described, look_up, milliseconds, no_timeouts

Report = Callable[..., object]
"""Is told an event by its name, and its facts by theirs; perhaps in the watchdog's thread."""

INTERVAL = 0.02  # seconds between two looks
BREAK = 0.5  # of the budget, for which nobody has waited when the next one who does is counted anew
HEARTBEAT = 0.1  # of the budget, between two looks while nothing lasts, lest the server thinks that nobody watches
WORTH_SAYING = 0.5  # seconds after which a statement is told of, and between two words on its progress

OURS = ["migrate", "migrate: ledger", "migrate: watchdog", "migrate: backstop"]
BACKFILL = "backfill"

# Who waits for a lock, and whether as a user. One of our own sessions is none, but while no statement runs, it counts:
# it would wait for ever. A waiting session's row has no start in its first moment:
# https://www.postgresql.org/docs/current/view-pg-locks.html
WAITING = f"""
    SELECT pid, extract(epoch FROM clock_timestamp() - coalesce(waitstart, clock_timestamp()))::float8,
           extract(epoch FROM waitstart)::float8, relation::regclass::text, mode, pg_blocking_pids(pid),
           {IS_A_USER} AND NOT (%(busy)s AND coalesce(application_name = ANY(%(ours)s), false)),
           (SELECT virtualtransaction FROM pg_locks WHERE pid = %(us)s AND locktype = 'virtualxid' AND granted LIMIT 1)
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) WHERE NOT granted
"""  # noqa: S608

END = """
    SELECT CASE WHEN state LIKE 'idle%%' THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END
    FROM pg_stat_activity WHERE pid = %s
"""

OUR_LOCK = """
    SELECT mode FROM pg_locks
    WHERE pid = %(us)s AND granted AND relation::regclass::text = %(table)s
    ORDER BY array_position(%(modes)s, mode) DESC LIMIT 1
"""

# https://www.postgresql.org/docs/current/progress-reporting.html#CREATE-INDEX-PROGRESS-REPORTING
PROGRESS = """
    SELECT phase, CASE WHEN blocks_total > 0 THEN round(100.0 * blocks_done / blocks_total)::int
                       WHEN tuples_total > 0 THEN round(100.0 * tuples_done / tuples_total)::int END
    FROM pg_stat_progress_create_index WHERE pid = %s
"""


class Wait(NamedTuple):
    """One session that waits in a lock's queue."""

    pid: int
    seconds: float
    since: float | None
    table: str | None
    mode: str
    blockers: list[int]
    is_a_user: bool
    transaction: str | None
    """Ours."""


@dataclass
class Blocked:
    """What a step did to the other sessions: times in seconds."""

    waits: dict[tuple[int, float | None], float] = field(default_factory=dict)
    lock_waits: dict[float | None, float] = field(default_factory=dict)

    @property
    def sessions(self) -> int:
        return len({pid for pid, _ in self.waits})

    @property
    def longest(self) -> float:
        return max(self.waits.values(), default=0.0)

    @property
    def total(self) -> float:
        return sum(self.waits.values())

    @property
    def lock_wait(self) -> float:
        """How long our own statements waited for their locks."""
        return sum(self.lock_waits.values())


class Watchdog(threading.Thread):
    """Watches the session of a connection, from the first ``with`` until its end.

    Args:
        connection: whose session is watched. The watchdog opens one of its own with the same parameters.
        budget: seconds that anybody may wait for us before the running statement is canceled.
        queue_budget: seconds that anybody may wait behind us while we only wait ourselves.
        report: is told of statements that last, and of their progress.
    """

    def __init__(self, connection: BaseDatabaseWrapper, *, budget: float, queue_budget: float, report: Report) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.budget, self.queue_budget, self.report = budget, queue_budget, report
        self.watched = connection
        self._names = look_up(connection, "search_path")
        self.session = self._open()
        self._backstop: Backstop | None = None
        self._opening = threading.Lock()
        self.follow()
        self.blocked = Blocked()
        self.statement, self.is_patient = "", False
        self.is_code = False
        """Whether code of a migration's author is at work, which waits for its locks as long as it likes."""
        self._verdict: ZeroDowntimeError | None = None
        self.gave_way = False
        """Whether it was canceled only to let others pass, and is to be tried again."""
        self.blockers: list[int] = []
        self._kept: dict[str | None, tuple[float, float]] = {}
        self._transaction: str | None = None
        self._busy_since: float | None = None
        self._say_at = 0.0
        self._canceled_at: float | None = None
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self.join()
        if self._backstop:
            self._backstop.finish(self.session)
        self.session.close()

    @property
    def verdict(self) -> ZeroDowntimeError | None:
        """Why the running statement was canceled, if it was for good: the error that the step ends with."""
        self._listen()
        return self._verdict

    @verdict.setter
    def verdict(self, verdict: ZeroDowntimeError | None) -> None:
        self._verdict = verdict

    def follow(self) -> None:
        """Watch the session that the connection has now, and have the server watch it, too."""
        self.us: int = self.watched.connection.info.backend_pid
        with suppress(psycopg.Error):  # then the watchdog's thread tries again, and gives the verdict
            self._have_it_watched()

    def _have_it_watched(self) -> None:
        """Have the server watch the session, before anything is executed in it that might keep others waiting."""
        with self._opening:
            before, us, watchdog = self._backstop, self.us, self.session.info.backend_pid
            if before and (before.us, before.watchdog) == (us, watchdog) and not before.lost:
                return
            session = self._open("migrate: backstop")
            self._backstop = Backstop(session, us=us, watchdog=watchdog, budget=self.budget)
            if before:
                before.end(self.session)

    def _listen(self) -> None:
        """Hear what the server has done in our stead.

        Raises:
            psycopg.OperationalError: in the watchdog's thread, if the server watches no more.
        """
        if not self._backstop:
            return
        if said := self._backstop.heard():
            self._verdict = self._verdict or BlockedTooLong(
                f"The watchdog stood still, with this process or because nobody reads its output, and {said}. So the "
                f"server let everybody in. The statement: {' '.join(self.statement.split())[:500]}"
            )
        if self._backstop.lost and threading.current_thread() is self:
            raise psycopg.OperationalError(self._backstop.lost)

    def new_step(self) -> Blocked:
        """Forget the last step's waits and verdict; return where this one's will be."""
        self.blocked = Blocked()
        self.new_try()
        return self.blocked

    def new_try(self) -> None:
        self._listen()
        self._verdict, self.gave_way, self._canceled_at = None, False, None
        self._busy_since = time.monotonic()

    def rest(self) -> None:
        """Look no more until the next try: nothing is held."""
        self._busy_since = None

    def begin_statement(self, sql: str, *, is_patient: bool) -> None:
        """Be told which statement runs, and whether others may wait behind it while it waits itself."""
        self.is_patient = is_patient
        self.statement, self._say_at, self.blockers = sql, time.monotonic() + WORTH_SAYING, []

    def end_statement(self) -> None:
        """Remember who blocked it: for what is said of the next try."""
        self.statement = ""

    def run(self) -> None:
        looked_at = 0.0
        while not self._ended.wait(INTERVAL if looked_at else 0):
            now = time.monotonic()
            is_busy = self._busy_since is not None and now - self._busy_since > INTERVAL
            if is_busy or now - looked_at > self.budget * HEARTBEAT:
                looked_at = now
                try:
                    self._have_it_watched()
                    self.look()
                    self._listen()
                except psycopg.Error as error:
                    self._look_again(error)
                except Exception as error:  # noqa: BLE001 - a reporter's, say
                    self._end_with(Unwatched.failed(summary(error)))

    def _open(self, name: str = "migrate: watchdog") -> "psycopg.Connection[Any]":
        """Open a session that calls tables as the watched one does, under the role that may cancel its statements."""
        parameters = {**self.watched.get_connection_params(), "application_name": name}
        session: psycopg.Connection[Any] = psycopg.connect(**parameters)  # past the project's pool, if it has one
        session.autocommit = True
        settings = no_timeouts(self.watched) | self._names
        settings["client_connection_check_interval"] = milliseconds(self.budget)
        session.execute(PUT, [False, list(settings), list(settings.values())])
        return session

    def _look_again(self, error: psycopg.Error) -> None:
        """Open other sessions in place of those that were lost; if none are to be had, let nothing run unwatched."""
        try:
            self.session.close()
            self.session = self._open()
            self._have_it_watched()
        except (psycopg.Error, Error) as refusal:
            self._end_with(Unwatched.lost(summary(error), summary(refusal)))

    def _end_with(self, verdict: ZeroDowntimeError) -> None:
        """End the running statement, past the watchdog's own session."""
        self._verdict = verdict
        if watched := self.watched.connection:  # Django lets go of one that it has found lost
            with suppress(psycopg.Error):
                watched.cancel_safe(timeout=self.budget)

    def look(self) -> None:
        """See who waits now, remember it, and cancel our statement where that is due."""
        values = {"us": self.us, "ours": OURS, "busy": bool(self.statement)}
        rows = [Wait(*row) for row in self.session.execute(WAITING, values)]
        ours = [wait for wait in rows if wait.pid == self.us]
        users = [wait for wait in behind(self.us, rows) if wait.is_a_user]
        for wait in ours:
            self.blocked.lock_waits[wait.since] = wait.seconds
            self.blockers = wait.blockers or self.blockers
        for wait in users:
            self.blocked.waits[wait.pid, wait.since] = wait.seconds
        kept_out = self._kept_out(users)
        in_queue = bool(ours) and not self.is_patient and not self.gave_way
        if in_queue and kept_out > (self.budget if self.is_code else self.queue_budget):
            self.gave_way = True
            self.session.execute("SELECT pg_cancel_backend(%s)", [self.us])
        elif kept_out > self.budget * (2 if self.gave_way else 1):
            self._cancel(users, kept_out)
        elif self.statement and time.monotonic() > self._say_at:
            self._say_progress(waits=bool(ours))

    def _kept_out(self, users: list[Wait]) -> float:
        """Return for how many seconds our transaction has kept anybody out of a table or of rows, without a break.

        Those who give up and come again, or come in turns, wait for as long as one who stays.
        """
        now, longest = time.monotonic(), 0.0
        if users and users[0].transaction != self._transaction:
            self._kept, self._transaction = {}, users[0].transaction
        for wait in users:
            since, last = self._kept.get(wait.table, (now, 0.0))
            began = now - wait.seconds
            holds_on = bool(wait.table) or now - last < BREAK * self.budget  # a table is locked until the end
            since = min(since, began) if holds_on else began
            self._kept[wait.table] = since, now
            longest = max(longest, now - since)
        return longest

    def _say_progress(self, *, waits: bool) -> None:
        self._say_at = time.monotonic() + WORTH_SAYING
        phase, percent = self.session.execute(PROGRESS, [self.us]).fetchone() or ("", None)
        whom = self.whom_we_wait_for() if waits else ""
        self.report("progress", sql=self.statement, phase=phase, percent=percent, whom=whom)

    def _cancel(self, users: list[Wait], kept_out: float) -> None:
        """Cancel the statement; where none is running and the transaction stays open all the same, end the session."""
        now = time.monotonic()
        if self._canceled_at is None:
            self._canceled_at = now
            self._verdict = BlockedTooLong(self._reason(users, kept_out))
            self.session.execute(END, [self.us])
        elif now - self._canceled_at > self.budget:
            self._canceled_at = now
            self.session.execute("SELECT pg_terminate_backend(%s)", [self.us])

    def _reason(self, users: list[Wait], kept_out: float) -> str:
        longest = max(users, key=lambda wait: wait.seconds)
        modes = list(BLOCKS)
        found = self.session.execute(OUR_LOCK, {"us": self.us, "table": longest.table or "", "modes": modes}).fetchone()
        lock = found[0] if found else "its lock"
        blocks = BLOCKS.get(lock, "") or "others"
        where = f"table {longest.table}" if longest.table else "a row"
        in_turns = f", and somebody at any time for {kept_out:.1f} s" if kept_out > longest.seconds + INTERVAL else ""
        return (
            f"It held {lock} on {where}, which blocks {blocks}: "
            f"{counted(len(users), 'session')} waited, the longest for {longest.seconds:.1f} s{in_turns}, "
            f"more than the block budget of {self.budget:g} s. The statement: {' '.join(self.statement.split())[:500]}"
        )

    def whom_we_wait_for(self) -> str:
        """Say which sessions kept us from our lock when it was last looked at."""
        with suppress(psycopg.Error):
            return described(self.session.execute(BLOCKERS, [self.blockers]).fetchall())
        return ""


def behind(us: int, waits: list[Wait]) -> list[Wait]:
    """Return who waits for us, also behind others who do."""
    found: set[int] = set()
    new = {us}
    while new:
        new = {wait.pid for wait in waits if not new.isdisjoint(wait.blockers)} - found - {us}
        found |= new
    return [wait for wait in waits if wait.pid in found]
