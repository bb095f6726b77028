"""Whom does a migration keep waiting, and for how long?

``lock_timeout`` bounds how long our statements wait for a lock. Once a statement has its lock, only another session can
see who waits for it, and cancel it. The watchdog is that session: a thread that looks every 20 ms once a statement
lasts. If the thread stands still, ``backstop`` does its work.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import BlockedTooLong, GaveWay, Unwatched, ZeroDowntimeError, counted, summary
from ..postgres.locks import BLOCKERS, BLOCKS, PUT, described, look_up, milliseconds, no_timeouts
from .backstop import END, KEPT_OUT, Backstop

Report = Callable[..., object]
"""Called with the name of an event and its facts, perhaps by the watchdog's thread."""

INTERVAL = 0.02  # seconds between two looks
BREAK = 0.5  # of the budget: after so long without a wait for rows, the next wait counts anew
HEARTBEAT = 0.1  # of the budget: between two looks while nothing lasts, so that the backstop sees the watchdog alive
WORTH_SAYING = 0.5  # seconds before the first report on a statement's progress, and between two reports

WAITS = f"""
    SELECT pid, seconds, extract(epoch FROM waitstart)::float8, relation::regclass::text, blockers,
           (SELECT mode FROM pg_locks WHERE pid = {{us}} AND granted AND relation = kept_out.relation
            ORDER BY array_position(ARRAY{list(BLOCKS)}, mode) DESC LIMIT 1),
           (SELECT virtualtransaction FROM pg_locks WHERE pid = {{us}} AND locktype = 'virtualxid' AND granted LIMIT 1)
    FROM ({KEPT_OUT}) AS kept_out
"""  # noqa: S608

HOLDS = """
    SELECT FROM pg_locks WHERE granted
    AND (pid, relation, mode, virtualtransaction) = (%s, to_regclass(%s), %s, %s)
"""

# https://www.postgresql.org/docs/current/progress-reporting.html#CREATE-INDEX-PROGRESS-REPORTING
PROGRESS = """
    SELECT phase, CASE WHEN blocks_total > 0 THEN round(100.0 * blocks_done / blocks_total)::int
                       WHEN tuples_total > 0 THEN round(100.0 * tuples_done / tuples_total)::int END
    FROM pg_stat_progress_create_index WHERE pid = %s
"""

NO_BACKSTOP = (
    "track_activities is off for this role, so the server cannot see whether the watchdog stands still. If this "
    "process is stopped, others wait for it. ALTER ROLE … SET track_activities = on changes that."
)


class Wait(NamedTuple):
    """One session that waits for a lock: ours, or one that we block."""

    pid: int
    seconds: float
    since: float | None
    table: str | None
    blockers: list[int]
    our_lock: str | None
    """The mode of our lock on that table."""
    our_transaction: str | None


class Blocked:
    """How long a step made other sessions wait, and waited itself."""

    def __init__(self) -> None:
        self.users: dict[tuple[int, float | None], float] = {}
        self.ours: dict[float | None, float] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """The numbers for the ledger; times in seconds."""
        return {
            "lock_wait": sum(self.ours.values()),
            "longest_blocked": max(self.users.values(), default=0.0),
            "total_blocked": sum(self.users.values()),
            "blocked_sessions": len({pid for pid, _ in self.users}),
        }


class Watchdog(threading.Thread):
    """Watches the session of a connection, from the first ``with`` until its end.

    Args:
        connection: whose session is watched. The watchdog opens its own sessions with the same parameters.
        budget: seconds that a session may wait for us before the running statement is canceled.
        report: called with the progress of statements that last.
    """

    session: "psycopg.Connection[Any]"

    def __init__(self, connection: BaseDatabaseWrapper, *, budget: float, report: Report) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.watched, self.budget, self.report = connection, budget, report
        self.us: int = connection.connection.info.backend_pid
        self.blocked = Blocked()
        self._names = look_up(connection, "search_path", "track_activities")
        self._has_backstop = self._names.pop("track_activities") == "on"
        self._backstop: Backstop | None = None
        self._sessions = ExitStack()
        self._watches = 0
        """The process id of the session that is watched now."""
        self._statement, self._gives_way_after, self._say_at = "", math.inf, math.inf
        self._blockers: list[int] = []
        self._kept: dict[str | None, tuple[float, float]] = {}
        self._gave_up: Wait | None = None
        """The last wait for a table that we have locked."""
        self._transaction: str | None = None
        self._verdict: ZeroDowntimeError | None = None
        self._ended_at: float | None = None
        self._busy_since = math.inf
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        if not self._has_backstop:
            self.report("note", text=NO_BACKSTOP)
        self._open()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()
        self._sessions.close()

    def follow(self) -> None:
        """Watch the connection's new session; return once it is watched."""
        self.us = self.watched.connection.info.backend_pid
        while self._watches != self.us and not isinstance(self._verdict, Unwatched):
            time.sleep(INTERVAL / 10)

    def new_step(self) -> Blocked:
        """Forget the last step's waits and verdict; return the record of the new step."""
        self.blocked = Blocked()
        self.new_try()
        return self.blocked

    def new_try(self) -> None:
        """Forget the verdict on the last try."""
        self._hear()
        self._verdict, self._ended_at, self._busy_since = None, None, time.monotonic()

    def begin_statement(self, sql: str, *, gives_way_after: float) -> None:
        """Note that a statement begins.

        Args:
            gives_way_after: seconds that others may wait behind it while it waits for its own lock.
        """
        self._statement, self._gives_way_after, self._blockers = sql, gives_way_after, []
        self._say_at = time.monotonic() + WORTH_SAYING

    def end_statement(self) -> None:
        """Note that the statement has ended; it stays the last one, with the sessions that blocked it."""
        self._say_at = math.inf

    @property
    def verdict(self) -> ZeroDowntimeError | None:
        """Why a statement was canceled: ``GaveWay`` if only to let others pass, else the error that ends the step."""
        self._hear()
        return self._verdict

    def judge(self, verdict: ZeroDowntimeError) -> None:
        """Set the verdict, unless there is one other than ``GaveWay``."""
        if self._verdict is None or isinstance(self._verdict, GaveWay):
            self._verdict = verdict

    def forgive(self) -> None:
        """Forget a ``GaveWay``: the statement ended all the same."""
        if isinstance(self._verdict, GaveWay):
            self._verdict = None

    def whom_we_wait_for(self) -> str:
        """Describe the sessions that blocked our lock at the last look."""
        with suppress(psycopg.Error):
            return described(self.session.execute(BLOCKERS, [self._blockers]).fetchall())
        return ""

    def run(self) -> None:
        looked_at = 0.0
        while not self._over.wait(INTERVAL if looked_at else 0):
            now = time.monotonic()
            is_due = now - self._busy_since > INTERVAL or now - looked_at > self.budget * HEARTBEAT
            if is_due or self._watches != self.us:
                looked_at = now
                self._look_or_end()

    def _look_or_end(self) -> None:
        """Look, in new sessions if ours are lost; if that fails, cancel the running statement."""
        try:
            if self._watches != self.us or (self._backstop and self._backstop.lost):
                self._open()
            self.look()
            self._hear()
        except psycopg.Error as error:
            try:
                self._open()
            except (psycopg.Error, Error) as refusal:
                self._end_with(Unwatched.lost(summary(error), summary(refusal)))
        except Exception as error:  # noqa: BLE001 - a reporter's, say
            self._end_with(Unwatched.failed(summary(error)))

    def look(self) -> None:
        """See who waits now, remember it, and cancel our statement if the budget is used up."""
        waits = [Wait(*row) for row in self.session.execute(WAITS.format(us=self.us))]
        ours = next((wait for wait in waits if wait.pid == self.us), None)
        users = [wait for wait in waits if wait is not ours]
        if ours:
            self.blocked.ours[ours.since] = ours.seconds
            self._blockers = ours.blockers or self._blockers
        for wait in users:
            self.blocked.users[wait.pid, wait.since] = wait.seconds
        users = users or self._still_kept_out()
        kept_out, gave_way = self._kept_out(users), isinstance(self._verdict, GaveWay)
        if ours and not gave_way and kept_out > self._gives_way_after:
            self.judge(GaveWay("Its statement was canceled, because others waited behind it."))
            self.session.execute("SELECT pg_cancel_backend(%s)", [self.us])
        elif kept_out > self.budget * (2 if gave_way else 1):
            self._end(users, kept_out)
        elif time.monotonic() > self._say_at:
            self._say_at = time.monotonic() + WORTH_SAYING
            phase, percent = self.session.execute(PROGRESS, [self.us]).fetchone() or ("", None)
            whom = self.whom_we_wait_for() if ours else ""
            self.report("progress", sql=self._statement, phase=phase, percent=percent, whom=whom)

    def _still_kept_out(self) -> list[Wait]:
        """Return the last wait for a table if we still lock it: the session may try again between two looks."""
        if (wait := self._gave_up) is None:
            return []
        held = [self.us, wait.table, wait.our_lock, wait.our_transaction]
        self._gave_up = wait if self.session.execute(HOLDS, held).rowcount else None
        return [wait] if self._gave_up else []

    def _kept_out(self, users: list[Wait]) -> float:
        """Return for how many seconds our transaction has blocked others on one table or on rows, without a break.

        Sessions that give up and come again, or that take turns, count as one that stays.
        """
        now, longest = time.monotonic(), 0.0
        if users and users[0].our_transaction != self._transaction:
            self._kept, self._transaction = {}, users[0].our_transaction
        for wait in users:
            since, last = self._kept.get(wait.table, (now, 0.0))
            began = now - wait.seconds
            holds_on = bool(wait.table) or now - last < BREAK * self.budget  # a table stays locked to the end
            since = min(since, began) if holds_on else began
            self._kept[wait.table] = since, now
            self._gave_up = wait if wait.table and BLOCKS.get(wait.our_lock or "") else self._gave_up
            longest = max(longest, now - since)
        return longest

    def _end(self, users: list[Wait], kept_out: float) -> None:
        """Cancel the statement, or end the session if it idles in its transaction or goes on."""
        now = time.monotonic()
        if self._ended_at is None:
            self._ended_at = now
            self.judge(BlockedTooLong(self._reason(users, kept_out)))
            self.session.execute(END.format(us=self.us))
        elif now - self._ended_at > self.budget:
            self._ended_at = now
            self.session.execute("SELECT pg_terminate_backend(%s)", [self.us])

    def _reason(self, users: list[Wait], kept_out: float) -> str:
        longest = max(users, key=lambda wait: wait.seconds)
        lock = longest.our_lock or "its lock"
        where = f"table {longest.table}" if longest.table else "a row"
        in_turns = f", and somebody at any time for {kept_out:.1f} s" if kept_out > longest.seconds + INTERVAL else ""
        return (
            f"It held {lock} on {where}, which blocks {BLOCKS.get(lock) or 'others'}: "
            f"{counted(len(users), 'session')} waited, the longest for {longest.seconds:.1f} s{in_turns}, "
            f"more than the block budget of {self.budget:g} s. {self._what_ran}"
        )

    @property
    def _what_ran(self) -> str:
        text = " ".join(self._statement.split())[:500]
        return f"The statement: {text}" if self._say_at < math.inf else f"No statement ran. The last one: {text}"

    def _open(self) -> None:
        """Open the watchdog's session and the backstop's, and close those before."""
        self._sessions.close()
        us, self.session = self.us, self._session("migrate: watchdog")
        self._sessions.callback(self.session.close)
        if self._has_backstop:
            session = self._session("migrate: backstop")
            self._backstop = Backstop(session, us=us, watchdog=self.session, budget=self.budget)
            self._sessions.callback(self._backstop.close)
        self._watches = us

    def _session(self, name: str) -> "psycopg.Connection[Any]":
        """Open a session with the watched one's search path, and its login role, which may cancel its statements."""
        parameters = {**self.watched.get_connection_params(), "application_name": name}
        session: psycopg.Connection[Any] = psycopg.connect(**parameters)
        session.autocommit = True
        settings = no_timeouts(self.watched) | self._names
        settings["client_connection_check_interval"] = milliseconds(self.budget)
        session.execute(PUT, [False, list(settings), list(settings.values())])
        return session

    def _hear(self) -> None:
        """Set the verdict if the backstop has canceled something."""
        if self._backstop and (said := self._backstop.heard()):
            self.judge(
                BlockedTooLong(
                    f"The watchdog stood still, with this process or because nobody reads its output, and {said}. So "
                    f"the server canceled the statement or ended the session. {self._what_ran}"
                )
            )

    def _end_with(self, verdict: ZeroDowntimeError) -> None:
        """Cancel the running statement without the watchdog's session."""
        self.judge(verdict)
        if watched := self.watched.connection:  # None if Django has found it lost
            with suppress(psycopg.Error):
                watched.cancel_safe(timeout=self.budget)
