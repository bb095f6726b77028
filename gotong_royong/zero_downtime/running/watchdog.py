"""Whom does a migration keep waiting, and for how long?

``lock_timeout`` bounds how long our statements wait. Once one has its lock, only a second session can see who waits
for us, and end it: this room is that session, a thread that looks every 20 ms. Nobody can have waited longer than we
have been at it, so it looks that often only once something lasts. Where the thread stands still, ``backstop`` does it.
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
"""Is told an event by its name, and its facts by theirs; perhaps in the watchdog's thread."""

INTERVAL = 0.02  # seconds between two looks
BREAK = 0.5  # of the budget, for which nobody has waited when the next one who does is counted anew
HEARTBEAT = 0.1  # of the budget, between two looks while nothing lasts, lest the server thinks that nobody watches
WORTH_SAYING = 0.5  # seconds after which a statement is told of, and between two words on its progress

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
    "track_activities is off for this role. So the server cannot see whether the watchdog stands still: should this "
    "process be stopped, nobody is let in. ALTER ROLE … SET track_activities = on changes that."
)


class Wait(NamedTuple):
    """One session that waits in a lock's queue: ours, or somebody who is kept out by us."""

    pid: int
    seconds: float
    since: float | None
    table: str | None
    blockers: list[int]
    our_lock: str | None
    """On that table."""
    our_transaction: str | None


class Blocked:
    """What a step did to the other sessions, and how long it waited itself."""

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
        connection: whose session is watched. The watchdog opens one of its own with the same parameters.
        budget: seconds that anybody may wait for us before the running statement is canceled.
        report: is told of statements that last, and of their progress.
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
        """The session that is watched in fact, as soon as the sessions for that are open."""
        self._statement, self._gives_way_after, self._say_at = "", math.inf, math.inf
        self._blockers: list[int] = []
        self._kept: dict[str | None, tuple[float, float]] = {}
        self._gave_up: Wait | None = None
        """Who was seen last to wait for a table that we have locked."""
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
        """Watch the session that the connection has now; wait until it is, so that nothing is executed before."""
        self.us = self.watched.connection.info.backend_pid
        while self._watches != self.us and not isinstance(self._verdict, Unwatched):
            time.sleep(INTERVAL / 10)

    def new_step(self) -> Blocked:
        """Forget the last step's waits and verdict; return where this one's will be."""
        self.blocked = Blocked()
        self.new_try()
        return self.blocked

    def new_try(self) -> None:
        self._hear()
        self._verdict, self._ended_at, self._busy_since = None, None, time.monotonic()

    def begin_statement(self, sql: str, *, gives_way_after: float) -> None:
        """Be told which statement runs.

        Args:
            gives_way_after: seconds that others may wait behind it while it waits for its own lock.
        """
        self._statement, self._gives_way_after, self._blockers = sql, gives_way_after, []
        self._say_at = time.monotonic() + WORTH_SAYING

    def end_statement(self) -> None:
        """Be told that it has ended; it is the last one until the next, and who blocked it is remembered."""
        self._say_at = math.inf

    @property
    def verdict(self) -> ZeroDowntimeError | None:
        """Why something was ended: a ``GaveWay`` if only to let others pass, else the error that the step ends with."""
        self._hear()
        return self._verdict

    def judge(self, verdict: ZeroDowntimeError) -> None:
        """Give a verdict, unless there is one for good."""
        if self._verdict is None or isinstance(self._verdict, GaveWay):
            self._verdict = verdict

    def forgive(self) -> None:
        """Forget that something was to give way: it has come to its end all the same."""
        if isinstance(self._verdict, GaveWay):
            self._verdict = None

    def whom_we_wait_for(self) -> str:
        """Say which sessions kept us from our lock when it was last looked at."""
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
        """Look, from other sessions in place of lost ones; if it cannot, end what runs: nothing runs unwatched."""
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
        """See who waits now, remember it, and end what we do where that is due."""
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
            self.judge(GaveWay("Its statement was canceled, for others waited behind it."))
            self.session.execute("SELECT pg_cancel_backend(%s)", [self.us])
        elif kept_out > self.budget * (2 if gave_way else 1):
            self._end(users, kept_out)
        elif time.monotonic() > self._say_at:
            self._say_at = time.monotonic() + WORTH_SAYING
            phase, percent = self.session.execute(PROGRESS, [self.us]).fetchone() or ("", None)
            whom = self.whom_we_wait_for() if ours else ""
            self.report("progress", sql=self._statement, phase=phase, percent=percent, whom=whom)

    def _still_kept_out(self) -> list[Wait]:
        """Return who has given up waiting for a table, if we have it still: tries shorter than a look are not seen."""
        if (wait := self._gave_up) is None:
            return []
        held = [self.us, wait.table, wait.our_lock, wait.our_transaction]
        self._gave_up = wait if self.session.execute(HOLDS, held).rowcount else None
        return [wait] if self._gave_up else []

    def _kept_out(self, users: list[Wait]) -> float:
        """Return for how many seconds our transaction has kept anybody out of a table or of rows, without a break.

        Those who give up and come again, or come in turns, wait for as long as one who stays.
        """
        now, longest = time.monotonic(), 0.0
        if users and users[0].our_transaction != self._transaction:
            self._kept, self._transaction = {}, users[0].our_transaction
        for wait in users:
            since, last = self._kept.get(wait.table, (now, 0.0))
            began = now - wait.seconds
            holds_on = bool(wait.table) or now - last < BREAK * self.budget  # a table is locked until the end
            since = min(since, began) if holds_on else began
            self._kept[wait.table] = since, now
            self._gave_up = wait if wait.table and BLOCKS.get(wait.our_lock or "") else self._gave_up
            longest = max(longest, now - since)
        return longest

    def _end(self, users: list[Wait], kept_out: float) -> None:
        """Cancel the statement, or end the session that idles in its transaction; end it, too, if it goes on."""
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
        """Open the watchdog's session, and have the server watch ours, in place of what there was for that."""
        self._sessions.close()
        us, self.session = self.us, self._session("migrate: watchdog")
        self._sessions.callback(self.session.close)
        if self._has_backstop:
            session = self._session("migrate: backstop")
            self._backstop = Backstop(session, us=us, watchdog=self.session, budget=self.budget)
            self._sessions.callback(self._backstop.close)
        self._watches = us

    def _session(self, name: str) -> "psycopg.Connection[Any]":
        """Open a session that calls tables as the watched one does, under the role that may cancel its statements."""
        parameters = {**self.watched.get_connection_params(), "application_name": name}
        session: psycopg.Connection[Any] = psycopg.connect(**parameters)
        session.autocommit = True
        settings = no_timeouts(self.watched) | self._names
        settings["client_connection_check_interval"] = milliseconds(self.budget)
        session.execute(PUT, [False, list(settings), list(settings.values())])
        return session

    def _hear(self) -> None:
        """Hear what the server has done in our stead."""
        if self._backstop and (said := self._backstop.heard()):
            self.judge(
                BlockedTooLong(
                    f"The watchdog stood still, with this process or because nobody reads its output, and {said}. So "
                    f"the server let everybody in. {self._what_ran}"
                )
            )

    def _end_with(self, verdict: ZeroDowntimeError) -> None:
        """End the running statement, past the watchdog's own session."""
        self.judge(verdict)
        if watched := self.watched.connection:  # Django lets go of one that it has found lost
            with suppress(psycopg.Error):
                watched.cancel_safe(timeout=self.budget)
