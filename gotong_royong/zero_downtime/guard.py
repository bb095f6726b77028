"""How does work on a connection keep to the budget, whatever it does?

A guard bounds how long each statement waits for its lock, tries again what did not get it, lets the watchdog look, and
leaves the session as it was. It follows the connection to another session, should a migration close it or lose it.
Should this process be killed, the server notices within the block budget and ends the statement, which nobody watches
any more.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg.pq import TransactionStatus

from gotong_royong.zero_downtime import catalog, locks, statements
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import Unwatched, in_full
from gotong_royong.zero_downtime.watchdog import Report, Watchdog

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Guard:
    """Runs statements under the lock budget and the watchdog; ``guarded`` makes it for a connection."""

    def __init__(
        self, connection: BaseDatabaseWrapper, watchdog: Watchdog, settings: dict[str, str], report: Report
    ) -> None:
        self.connection, self.watchdog, self.settings, self.report = connection, watchdog, settings, report
        self._in_statement = False

    def trying(self, action: Callable[[int], T]) -> T:
        """Call ``action`` with 1, 2, 3 … until it gets its locks. What a try has done, it must undo if it fails.

        Raises:
            LockNotObtained: when the patience is at its end.
            BlockedTooLong: if somebody waited for longer than the block budget.
            Unwatched: if the watchdog has lost its session and gets no other.
        """
        try:
            return self._retrying(action)
        except Exception as error:
            verdict = self.watchdog.verdict
            if verdict and not (isinstance(verdict, Unwatched) and locks.is_lost(error)):
                raise verdict from None
            raise
        finally:
            self.watchdog.rest()

    def _retrying(self, action: Callable[[int], T]) -> T:
        def one_try(attempt: int) -> T:
            try:
                return action(attempt)
            except Exception:
                self._end_transaction()
                raise

        return locks.retrying(one_try, patience=conf.PATIENCE, retry=self._is_worth_another_try, report=self._say_retry)

    def statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Run what a cursor is to execute, outside of a transaction again and again until it has its locks.

        In a transaction it is run once, because that is tried again as a whole. Outside of one, a string of several
        statements is sent piece by piece, as ``statements.pieces`` cuts it.
        """
        if self._in_statement:
            return execute(sql, params, many, context)
        text = statements.text_of(sql, self.connection)
        pieces = [] if many or self._in_transaction() else statements.pieces(text)
        if len(pieces) < 2:
            return self._run(text, partial(execute, sql, params, many, context))
        if params:
            operations: Any = self.connection.ops
            pieces, params = statements.pieces(operations.compose_sql(text, params)), None
        for piece in pieces:
            result = self._run(piece, partial(execute, piece, params, many, context))
        return result

    def _run(self, sql: str, execute: Callable[[], Any]) -> Any:
        if self.watchdog.verdict:
            raise self.watchdog.verdict
        self._in_statement = True
        try:
            is_patient = statements.is_patient(sql) and self._holds_nothing()
            self.watchdog.begin_statement(sql, is_patient=is_patient)
            limits = {"lock_timeout": "0", "statement_timeout": "0"} if is_patient else {}
            with locks.session_settings(self.connection, **limits) if limits else nullcontext():
                if self._in_transaction():
                    return execute()
                return self._retrying(lambda attempt: self._build(sql, execute) if is_patient else execute())
        finally:
            self._in_statement = False
            self.watchdog.end_statement()

    def follow(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        """Give a new session of the connection what the one before had, and have it watched: a signal's receiver.

        Takes the lock of the session that migrates, for which it waits while the server still works for the one before.
        """
        if connection is not self.connection:
            return
        before, self._in_statement = self._in_statement, True
        try:
            self.watchdog.follow()
            with connection.cursor() as cursor:
                cursor.execute(locks.PUT, [False, list(self.settings), list(self.settings.values())])
            locks.take(connection, locks.AT_WORK, lambda whom: self.report("waiting", whom=whom))
        finally:
            self._in_statement = before

    def _build(self, sql: str, execute: Callable[[], Any]) -> Any:
        """Carry out a patient statement; an index that it builds is not left invalid.

        What an earlier build left invalid is dropped before. So is, afterwards, what another session left that was at
        work on it until then: IF NOT EXISTS passes over it.
        """
        statement = statements.Statement(sql)
        self._drop(catalog.left_by_reindex(self.connection, statement.rebuilds) if statement.rebuilds else [])
        self._drop(self._invalid(statement.build))
        result = execute()
        if invalid := self._invalid(statement.build):
            self._drop(invalid)
            result = execute()
        return result

    def _invalid(self, build: statements.Build | None) -> list[str]:
        """Return the index if it is there, on that table, invalid, and nobody is building it."""
        found = catalog.index(self.connection, build.table, build.name) if build else None
        return [found.name] if found and found.here and not found.valid else []

    def _drop(self, indexes: list[str]) -> None:
        """Drop the indexes. Takes SHARE UPDATE EXCLUSIVE on their tables, as a concurrent build does."""
        for name in indexes:
            logger.info("dropping index %s, which a failed build left invalid", name)
            with self.connection.cursor() as cursor:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    def _in_transaction(self) -> bool:
        """Ask the session, for SQL may begin and end transactions that Django does not know of."""
        session = self.connection.connection
        return not session.autocommit or session.info.transaction_status != TransactionStatus.IDLE

    def _holds_nothing(self) -> bool:
        """Whether nobody can wait for what the transaction has done so far, if there is one."""
        if not self._in_transaction():
            return True
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id_if_assigned() IS NULL")
            return bool(cursor.fetchone()[0])

    def _end_transaction(self) -> None:
        """Roll back what a statement began without Django: nothing can be tried in a transaction that failed."""
        session = self.connection.connection
        if session and session.autocommit and not self.connection.in_atomic_block:
            with suppress(psycopg.Error):
                session.rollback()

    def _is_worth_another_try(self, error: BaseException) -> bool:
        state = locks.sqlstate(error)
        return state in {locks.LOCK_NOT_AVAILABLE, locks.DEADLOCK} or (
            state == locks.QUERY_CANCELED and self.watchdog.gave_way and not self.watchdog.verdict
        )

    def _say_retry(self, attempt: int, pause: float, error: BaseException) -> None:
        self.report("retry", attempt=attempt, pause=pause, whom=self.watchdog.whom_we_wait_for() or in_full(error))
        self.watchdog.new_try()


@contextmanager
def guarded(connection: BaseDatabaseWrapper, report: Report) -> Iterator[Guard]:
    """Put the lock budget and the watchdog around everything that the connection does during the block.

    Args:
        report: is told of statements that take long, tries that got no lock, and waits.
    """
    settings = {
        "application_name": "migrate",
        "lock_timeout": locks.milliseconds(conf.LOCK_TIMEOUT),
        "client_connection_check_interval": locks.milliseconds(conf.BLOCK_BUDGET),
        **locks.no_idle_timeouts(connection),
    }
    with (
        locks.session_settings(connection, **settings),
        Watchdog(connection, budget=conf.BLOCK_BUDGET, queue_budget=conf.LOCK_TIMEOUT, report=report) as watchdog,
    ):
        guard = Guard(connection, watchdog, settings, report)
        connection_created.connect(guard.follow)
        try:
            with connection.execute_wrapper(guard.statement):
                yield guard
        finally:
            connection_created.disconnect(guard.follow)
