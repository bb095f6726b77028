"""How does work on a connection keep to the budget, whatever it does?

A guard bounds how long each statement waits for its lock, tries again what did not get it, lets the watchdog look, and
leaves the session as it was. It follows the connection to another session, should a migration close it or lose it.
Should this process be killed, the server notices within the block budget and ends the statement, which nobody watches
any more.

Code of a migration's author, such as RunPython, sees none of our limits: it waits for rows as in stock Django, for as
long as nobody waits behind it. It may catch what interrupts it, but what was interrupted by us is not taken for done.
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
from gotong_royong.zero_downtime.code import Code, bears_repeating, is_code
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import GaveWay, Unwatched, in_full
from gotong_royong.zero_downtime.watchdog import Report, Watchdog

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Guard:
    """Runs statements under the lock budget and the watchdog; ``guarded`` makes it for a connection."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        watchdog: Watchdog,
        settings: dict[str, str],
        before: dict[str, str],
        report: Report,
    ) -> None:
        self.connection, self.watchdog, self.settings, self.before = connection, watchdog, settings, before
        self.report = report
        self.may_repeat = True
        """Whether the step may be tried again: no code has run that may have committed something."""
        self._in_statement = False
        self._in_code: Code | None = None

    def trying(self, action: Callable[[int], T]) -> T:
        """Call ``action`` with 1, 2, 3 … until it gets its locks. What a try has done, it must undo if it fails.

        Raises:
            LockNotObtained: when the patience is at its end.
            BlockedTooLong: if somebody waited for longer than the block budget.
            Unwatched: if the watchdog has lost its session and gets no other.
        """
        self.may_repeat = True
        try:
            return self._retrying(action, lambda error: self.may_repeat and self.is_worth_another_try(error))
        except Exception as error:
            verdict = self.watchdog.verdict
            if verdict and not (isinstance(verdict, Unwatched) and locks.is_lost(error)):
                raise verdict from None
            raise
        finally:
            self.watchdog.rest()

    @contextmanager
    def carrying_out(self, *operations: Any) -> Iterator[None]:
        """Carry out operations; if there is code of a migration's author among them, under no limit that it can see.

        Raises:
            GaveWay: if it was interrupted by us, whatever it made of that, and nothing of it is committed.
            Interrupted: the same if something may be, and it does not bear being run again.
            BlockedTooLong: if somebody waited for it for longer than the block budget.
        """
        if not any(map(is_code, operations)):
            yield
            return
        in_one, could_repeat, bears_it = self._in_transaction(), self.may_repeat, all(map(bears_repeating, operations))
        self.may_repeat = could_repeat and (in_one or bears_it)
        self._in_code = code = Code(self, in_one, bears_repeating=bears_it)
        try:
            with code:
                yield
        except Exception as error:
            if interruption := code.interruption():
                raise interruption from error
            if locks.sqlstate(error) != locks.DEADLOCK:
                self.may_repeat = False  # it is an error of its own
            raise
        finally:
            self._in_code = None
        if interruption := code.interruption():
            raise interruption
        if not in_one:
            self.may_repeat = could_repeat  # it has come to its end, and the journal says so

    def _retrying(self, action: Callable[[int], T], retry: Callable[[BaseException], bool]) -> T:
        def one_try(attempt: int) -> T:
            try:
                return action(attempt)
            except Exception:
                self._end_transaction()
                raise

        return locks.retrying(one_try, patience=conf.PATIENCE, retry=retry, report=self._say_retry)

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
        if self._in_code:
            self._in_code.look_at(sql)
        self._in_statement = True
        try:
            is_patient = statements.is_patient(sql) and self._holds_nothing()
            self.watchdog.begin_statement(sql, is_patient=is_patient)
            limits = self._limits(sql, is_patient=is_patient)
            with locks.session_settings(self.connection, **limits) if limits else nullcontext():
                if self._in_transaction():
                    return execute()
                retry = self.is_worth_another_try
                return self._retrying(lambda attempt: self._build(sql, execute) if is_patient else execute(), retry)
        except Exception as error:
            if self._in_code:
                self._in_code.note(error)
            raise
        finally:
            self._in_statement = False
            self.watchdog.end_statement()

    def _limits(self, sql: str, *, is_patient: bool) -> dict[str, str]:
        """Return the settings that are the statement's own."""
        if is_patient:
            return {"lock_timeout": "0", "statement_timeout": "0"}
        if self._in_code and self._in_code.is_limited:
            return {"lock_timeout": self.settings["lock_timeout"]}
        return {}

    def follow(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        """Give a new session of the connection what the one before had, and have it watched: a signal's receiver.

        Takes the lock of the session that migrates, for which it waits while the server still works for the one before.
        """
        if connection is not self.connection:
            if self._in_code:
                self._in_code.use(connection)
            return
        with self.quietly():
            self.watchdog.follow()
            settings = self.settings | ({"lock_timeout": self.before["lock_timeout"]} if self._in_code else {})
            with connection.cursor() as cursor:
                cursor.execute(locks.PUT, [False, list(settings), list(settings.values())])
            locks.take(connection, locks.AT_WORK, lambda whom: self.report("waiting", whom=whom))

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Let the statements of the block be our own, which are not guarded."""
        before, self._in_statement = self._in_statement, True
        try:
            yield
        finally:
            self._in_statement = before

    def _build(self, sql: str, execute: Callable[[], Any]) -> Any:
        """Carry out a patient statement; no index is left invalid that it builds or that it failed to build earlier.

        What an earlier build left invalid is dropped before. So is, afterwards, what another session left that was at
        work on it until then: IF NOT EXISTS passes over it. Where PostgreSQL chooses the name, it chooses another one
        each time, and what earlier builds left is known by being the same as what is built then.
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

    def _invalid(self, build: statements.Build | None) -> list[str]:
        """Return the index if it is there, on that table, invalid, and nobody is building it."""
        found = catalog.index(self.connection, build.table, build.name) if build else None
        return [found.name] if found and found.here and found.abandoned else []

    def _drop(self, indexes: list[str]) -> None:
        """Drop the indexes. Takes SHARE UPDATE EXCLUSIVE on their tables, as a concurrent build does."""
        for name in indexes:
            logger.info("dropping index %s, which a failed build left invalid", name)
            with self.connection.cursor() as cursor:
                cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    def _in_transaction(self) -> bool:
        """Ask the session, for SQL may begin and end transactions that Django does not know of."""
        session = self.connection.connection
        if session is None:
            return False
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

    def is_worth_another_try(self, error: BaseException) -> bool:
        """Whether it is for a lock, or for those who waited behind us, that something came to no end."""
        state = locks.sqlstate(error)
        if state == locks.LOCK_NOT_AVAILABLE:
            return self._in_code is None or self._in_code.is_limited
        if state == locks.DEADLOCK or isinstance(error, GaveWay):
            return True
        return bool(state == locks.QUERY_CANCELED and self.watchdog.gave_way and not self.watchdog.verdict)

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
        locks.session_settings(connection, **settings) as before,
        Watchdog(connection, budget=conf.BLOCK_BUDGET, queue_budget=conf.LOCK_TIMEOUT, report=report) as watchdog,
    ):
        guard = Guard(connection, watchdog, settings, before, report)
        connection_created.connect(guard.follow)
        try:
            with connection.execute_wrapper(guard.statement):
                yield guard
        finally:
            connection_created.disconnect(guard.follow)
