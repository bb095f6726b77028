"""How does work on a connection keep to the budget, whatever it does?

A guard bounds how long each statement waits for its lock, tries again what did not get it, lets the watchdog look, and
leaves the session as it was. It follows the connection to another session, should a migration close it or lose it.
Should this process be killed, the server notices within the block budget and ends the statement, which nobody watches
any more.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from gotong_royong.zero_downtime import locks
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import Unwatched, in_full
from gotong_royong.zero_downtime.watchdog import Report, Watchdog

T = TypeVar("T")


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
        return locks.retrying(action, patience=conf.PATIENCE, retry=self._is_worth_another_try, report=self._say_retry)

    def statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Run one statement, outside of a transaction again and again until it has its lock.

        In a transaction it is run once, because that is tried again as a whole. So is a concurrent index build: what a
        failed one left behind must go first, and the schema editor sees to that.
        """
        if self._in_statement:
            return execute(sql, params, many, context)
        if self.watchdog.verdict:
            raise self.watchdog.verdict
        text = str(sql)
        patient = locks.is_patient(text)

        def without_limits() -> Any:
            with locks.session_settings(self.connection, lock_timeout="0", statement_timeout="0"):
                return execute(sql, params, many, context)

        self._in_statement = True
        self.watchdog.begin_statement(text)
        try:
            if patient:
                return without_limits()
            if self.connection.in_atomic_block:
                return execute(sql, params, many, context)
            return self._retrying(lambda attempt: execute(sql, params, many, context))
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
