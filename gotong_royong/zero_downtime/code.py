"""What may code of a migration's author count on, and may it run a second time?

Such code, as RunPython calls it, may catch whatever error there is. So none of our limits is an error that it sees: it
waits for rows as in stock Django, for as long as nobody waits behind it for longer than the block budget. What is cut
short by us all the same is remembered and raised at its end. It runs a second time only for that or for a deadlock, and
only if nothing of it can be committed: it stands in a transaction, has ended none and has changed nothing elsewhere.
"""

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import RunPython
from psycopg.pq import TransactionStatus

from gotong_royong.zero_downtime import locks, statements
from gotong_royong.zero_downtime.exceptions import GaveWay, Interrupted, ZeroDowntimeError, in_full

if TYPE_CHECKING:
    from gotong_royong.zero_downtime.guard import Guard

HALF_WAY = (
    "Its code was interrupted half-way: what that has committed stays, and it was not run again. Where it bears that, "
    "put @repeatable (gotong_royong.zero_downtime.operations) on its functions; else put right what is half done."
)


class Code:
    """Code of a migration's author, while it is at work.

    Args:
        in_transaction: whether it stands in one from its beginning.
        bears_repeating: whether its author says that it may run again, whatever it has committed.
    """

    def __init__(self, guard: "Guard", in_transaction: bool, *, bears_repeating: bool) -> None:
        self.guard, self.in_transaction, self.bears_repeating = guard, in_transaction, bears_repeating
        self.is_limited = False
        """Whether the running statement has our limit, for others would queue behind it."""
        self.cut_short: BaseException | None = None
        self._others = ExitStack()

    def __enter__(self) -> None:
        self.guard.watchdog.is_code, self.guard.watchdog.gave_way = True, False
        self._limit(self.guard.before["lock_timeout"])
        for connection in connections.all(initialized_only=True):
            if connection is not self.guard.connection and not self._is_ledger(connection):
                self._others.enter_context(connection.execute_wrapper(self._statement_elsewhere))

    def __exit__(self, *exception: object) -> None:
        self._others.close()
        self.guard.watchdog.is_code = False
        if self.guard.connection.connection is not None:
            self._limit(self.guard.settings["lock_timeout"])

    def look_at(self, sql: str) -> None:
        """Be told the next statement; let none follow an interruption."""
        if self.cut_short and not statements.Statement(sql).controls_transaction:
            raise self.cut_short
        session = self.guard.connection.connection
        has_ended = self.in_transaction and session.info.transaction_status == TransactionStatus.IDLE
        if has_ended or statements.commits(sql):
            self._may_have_committed()
        self.is_limited = statements.holds_up(sql) and "NOWAIT" not in sql.upper()

    def note(self, error: Exception) -> None:
        """Remember the error of a statement if it is of our making."""
        is_a_lock = locks.sqlstate(error) != locks.DEADLOCK and self.guard.is_worth_another_try(error)
        if is_a_lock or isinstance(error, ZeroDowntimeError):
            self.cut_short = error

    def use(self, connection: BaseDatabaseWrapper) -> None:
        """Be told that it, or anything else in this process, opens another connection."""
        if not self._is_ledger(connection):
            self._may_have_committed()

    def interruption(self) -> ZeroDowntimeError | None:
        """Return what to raise if it was interrupted by us."""
        watchdog, may_repeat = self.guard.watchdog, self.guard.may_repeat
        if verdict := watchdog.verdict:
            watchdog.verdict = verdict if may_repeat else verdict.saying(f"{verdict}\n{HALF_WAY}")
            return watchdog.verdict
        if not (self.cut_short or watchdog.gave_way):
            return None
        told = in_full(self.cut_short) if self.cut_short else "Its statement was canceled, for others waited behind it."
        return GaveWay(told) if may_repeat else Interrupted(f"{told}\n{HALF_WAY}")

    def _may_have_committed(self) -> None:
        self.guard.may_repeat = self.guard.may_repeat and self.bears_repeating

    def _limit(self, lock_timeout: str) -> None:
        """Set for how long its statements wait for locks: in its transaction, if it has one, else in the session.

        In a transaction that has failed it can be set no more, and need not be.
        """
        with self.guard.quietly(), suppress(Error), self.guard.connection.cursor() as cursor:
            cursor.execute(locks.PUT, [self.in_transaction, ["lock_timeout"], [lock_timeout]])

    def _statement_elsewhere(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if statements.Statement(str(sql)).verb != "SELECT":
            self._may_have_committed()
        return execute(sql, params, many, context)

    def _is_ledger(self, connection: BaseDatabaseWrapper) -> bool:
        return connection.alias == f"{self.guard.connection.alias}_ledger"


def is_code(operation: Any) -> bool:
    """Whether the operation is more than one of Django's or ours: somebody has written what it does."""
    inner, module = getattr(operation, "database_operations", ()), type(operation).__module__
    if inner or module.startswith("gotong_royong.zero_downtime."):
        return any(map(is_code, inner))
    return not (operation.reduces_to_sql and module.startswith("django."))


def bears_repeating(operation: Any) -> bool:
    """Whether the operation may run again after it was interrupted half-way: it, or each function of it, says so."""
    if inner := getattr(operation, "database_operations", ()):
        return all(map(bears_repeating, inner))
    functions = {getattr(operation, name, None) for name in ("code", "reverse_code")} - {None, RunPython.noop}
    says_so = [getattr(one, "repeatable", False) for one in functions or {operation}]
    return not is_code(operation) or all(says_so)
