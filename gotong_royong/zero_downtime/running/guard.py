"""How does a connection keep to the lock budget?

A guard sets a lock timeout for each statement, retries after it, runs the watchdog, and restores the session's settings
at the end. It follows the connection to a new session. If this process is killed, the server notices within the block
budget and ends the statement.

A migration's own Python, such as RunPython, has none of our limits while nobody waits behind it: it waits for rows as
in stock Django. It may catch our interruption, but then it does not count as done.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ..conf import conf
from ..exceptions import GaveWay, Interrupted, LockNotObtained, OwnTransaction, Unwatched, ZeroDowntimeError, in_full
from ..postgres import catalog, locks, statements
from .code import Code, bears_repeating, is_code
from .watchdog import Report, Watchdog

T = TypeVar("T")
logger = logging.getLogger(__name__)


PATIENT = {"lock_timeout": "0", "statement_timeout": "0"}

PARTLY = (
    "What the CALL or DO committed stays, and it was not run again. Repair what is half done, or write it so that it "
    "goes on where it was."
)


@dataclass
class Guard:
    """Runs statements under the lock budget and the watchdog; ``guarded`` makes it for a connection.

    Args:
        settings: the session's settings while it is guarded.
        before: their values before.
        report: called with retries and waits.
    """

    connection: BaseDatabaseWrapper
    watchdog: Watchdog
    settings: dict[str, str]
    before: dict[str, str]
    report: Report
    may_repeat: bool = True
    """Whether the step may run again: no unfinished operation has committed anything."""
    has_told_unwatched: bool = False
    _code: Code | None = None
    _has_committed: bool = False
    """Whether the operation has executed a statement that stays if the operation fails."""
    _is_quiet: bool = False

    def trying(self, action: Callable[[int], T]) -> T:
        """Call ``action`` with 1, 2, 3 … until it gets its locks. A failed try must undo its effects itself.

        Raises:
            LockNotObtained: after ZERO_DOWNTIME_PATIENCE.
            BlockedTooLong: if a session waited for us longer than the block budget.
            Unwatched: if the watchdog fails, or loses its session and gets no other.
        """
        self.may_repeat = True
        try:
            return self._retrying(action, lambda error: self.may_repeat and self.is_worth_another_try(error))
        except Exception as error:
            if self.connection.connection is not None and self.connection.connection.closed:
                self.connection.close()  # so that the undo opens a new session
            if isinstance(error, ZeroDowntimeError):
                raise
            verdict = self.watchdog.verdict
            is_for_good = verdict and not isinstance(verdict, GaveWay)
            if verdict and is_for_good and not (isinstance(verdict, Unwatched) and locks.is_lost(error)):
                raise verdict from None
            raise

    @contextmanager
    def carrying_out(self, *operations: Any) -> Iterator[None]:
        """Carry out operations; as ``Code`` if one of them runs the author's code."""
        if not any(map(is_code, operations)):
            self._has_committed = False
            try:
                yield
            except Exception:
                self.may_repeat = self.may_repeat and not self._has_committed
                raise
            return
        self._code = Code(self, bears_repeating=all(map(bears_repeating, operations)))
        try:
            with self._code:
                yield
        finally:
            self._code = None

    def statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Execute for a cursor; outside of a transaction, retry until the statement gets its locks.

        A transaction is retried as a whole, by ``trying``. Outside of one, a string of several statements is sent in
        the pieces of ``statements.pieces``.

        Raises:
            OwnTransaction: if it would end the migration's transaction.
            Interrupted: if it is a CALL or DO that may have committed something before it failed.
        """
        if self._is_quiet:
            return execute(sql, params, many, context)
        text = statements.text_of(sql, self.connection)
        if self.connection.in_atomic_block and not self._code and statements.commits(text):
            raise OwnTransaction(text)
        pieces = [] if many or self.in_transaction else statements.pieces(text)
        if len(pieces) < 2:
            return self._run(text, partial(execute, sql, params, many, context))
        if params:
            operations: Any = self.connection.ops
            pieces, params = statements.pieces(operations.compose_sql(text, params)), None
        for piece in pieces:
            result = self._run(piece, partial(execute, piece, params, many, context))
        return result

    def _run(self, sql: str, execute: Callable[[], Any]) -> Any:
        """Run one statement. A statement of the author's code gets our lock timeout only if others queue behind it."""
        code, verdict = self._code, self.watchdog.verdict
        is_for_good = verdict and (code or not isinstance(verdict, GaveWay))
        if verdict and is_for_good and not statements.Statement(sql).controls_transaction:
            raise verdict
        if code:
            code.look_at(sql)
        try:
            with self.quietly():
                is_patient = statements.is_patient(sql) and self._holds_nothing()
                may_commit = not self.in_transaction and statements.may_commit_on_its_way(sql)
                is_code = bool(code or may_commit)
                wait = math.inf if is_patient else conf.BLOCK_BUDGET if is_code else conf.LOCK_TIMEOUT
                self.watchdog.begin_statement(sql, gives_way_after=wait)
                own = {"lock_timeout": self.before["lock_timeout"]} if may_commit else {}
                limits = PATIENT if is_patient else code.limits if code else own
                with locks.session_settings(self.connection, **limits) if limits else nullcontext():
                    if self.in_transaction:
                        return execute()
                    one_try = partial(self._build, sql, execute) if is_patient else execute
                    one_try = partial(self._on_its_way, execute) if may_commit else one_try
                    result = self._retrying(lambda attempt: one_try(), self.is_worth_another_try)
                    self._has_committed = self._has_committed or not self.in_transaction
                    return result
        except Exception as error:
            if code:
                code.note(error)
            raise
        finally:
            self.watchdog.end_statement()

    def _retrying(self, action: Callable[[int], T], retry: Callable[[Exception], bool]) -> T:
        """Call ``action`` with 1, 2, 3 … until it succeeds, with growing pauses."""
        started = time.monotonic()
        for attempt in count(1):
            try:
                return action(attempt)
            except Exception as error:
                self._end_transaction()
                if not retry(error):
                    raise
                pause, so_far = locks.pause_after(attempt), time.monotonic() - started
                if so_far + pause > conf.PATIENCE:
                    raise LockNotObtained(
                        f"Gave up after {attempt} tries in {so_far:.0f} s: {' '.join(str(error).split())}. Nothing of "
                        "the last try is left. End the session that holds the lock, or raise ZERO_DOWNTIME_PATIENCE, "
                        "and migrate again."
                    ) from error
                whom = self.watchdog.whom_we_wait_for() or in_full(error)
                self.report("retry", attempt=attempt, pause=pause, whom=whom)
            self.watchdog.new_try()
            time.sleep(pause)
        raise AssertionError("count() does not end")

    def is_worth_another_try(self, error: Exception) -> bool:
        """Whether it failed for a lock, or because others waited behind us."""
        state = locks.sqlstate(error)
        if state == locks.LOCK_NOT_AVAILABLE:
            return self._code is None or bool(self._code.limits)
        if state == locks.QUERY_CANCELED:
            return isinstance(self.watchdog.verdict, GaveWay)
        return state == locks.DEADLOCK or isinstance(error, GaveWay)

    def follow(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        """Set up a new session of the connection like the one before, and watch it: a receiver of connection_created.

        Ends the session before if it still holds the lock AT_WORK, and takes that lock.
        """
        if connection is not self.connection:
            if self._code:
                self._code.elsewhere(connection)
            return
        before = self.watchdog.us
        with self.quietly(), connection.cursor() as cursor:
            self.watchdog.follow()
            own = {"lock_timeout": self.before["lock_timeout"]} if self._code else {}
            locks.put(connection, self.settings | own)
            if before in locks.holders(connection, locks.AT_WORK):
                cursor.execute("SELECT pg_terminate_backend(%s)", [before])
            locks.take(connection, locks.AT_WORK, lambda whom: self.report("waiting", whom=whom))

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Run the engine's own statements in the block, without the guard."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before

    def _build(self, sql: str, execute: Callable[[], Any]) -> Any:
        """Execute a patient statement, and leave no invalid index of it or of a failed try.

        Drop an invalid index of that name before the build, and again after it if another session's build failed
        meanwhile, which IF NOT EXISTS skips. If PostgreSQL chooses the name, drop the invalid twins of the new index.
        """
        statement = statements.Statement(sql)
        self._drop(self._invalid(statement.build))
        result = execute()
        if invalid := self._invalid(statement.build):
            self._drop(invalid)
            result = execute()
        if name := statement.builds_unnamed_on:
            self._drop(catalog.invalid_twins(self.connection, name))
        return result

    def _on_its_way(self, execute: Callable[[], Any]) -> Any:
        """Execute a statement that may commit and then fail; once, because nobody knows whether it has committed."""
        try:
            return execute()
        except Error as error:
            if locks.is_lost(error) or (self._code and not self.is_worth_another_try(error)):
                raise
            verdict = self.watchdog.verdict
            told = f"{verdict or in_full(error)}\n{PARTLY}"
            is_for_good = verdict and not isinstance(verdict, GaveWay)
            raise (verdict.saying(told) if verdict and is_for_good else Interrupted(told)) from error

    def _invalid(self, build: statements.Build | None) -> list[str]:
        """Return the index if it is on that table, invalid, and no session builds it."""
        found = catalog.index(self.connection, build.table, build.name) if build else None
        return [found.name] if found and found.here and found.abandoned else []

    def _drop(self, indexes: list[str]) -> None:
        """Drop the indexes. Takes SHARE UPDATE EXCLUSIVE on their tables.

        See https://www.postgresql.org/docs/current/sql-dropindex.html.
        """
        for name in indexes:
            logger.info("dropping index %s, which a failed build left invalid", name)
            with self.connection.cursor() as cursor:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    @property
    def in_transaction(self) -> bool:
        return locks.runs_in_transaction(self.connection)

    def _holds_nothing(self) -> bool:
        """Whether there is no transaction, or one that has written nothing yet."""
        if not self.in_transaction:
            return True
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NULL")
            return bool(cursor.fetchone()[0])

    def _end_transaction(self) -> None:
        """Roll back a transaction that a statement began without Django, so that the retry starts anew."""
        session = self.connection.connection
        if session and session.autocommit and not self.connection.in_atomic_block:
            with suppress(psycopg.Error):
                session.rollback()


@contextmanager
def guarded(connection: BaseDatabaseWrapper, report: Report) -> Iterator[Guard]:
    """Put the lock budget and the watchdog around everything that the connection does during the block.

    Args:
        report: called with the progress of long statements, with retries and waits.
    """
    settings = {
        "application_name": "migrate",
        "lock_timeout": locks.milliseconds(conf.LOCK_TIMEOUT),
        "client_connection_check_interval": locks.milliseconds(conf.BLOCK_BUDGET),
        **locks.no_idle_timeouts(connection),
    }
    with (
        locks.session_settings(connection, **settings) as before,
        Watchdog(connection, budget=conf.BLOCK_BUDGET, report=report) as watchdog,
    ):
        guard = Guard(connection, watchdog, settings, before, report)
        connection_created.connect(guard.follow)
        try:
            with connection.execute_wrapper(guard.statement):
                yield guard
        finally:
            connection_created.disconnect(guard.follow)
