"""May the author's code in a migration, such as RunPython, run a second time?

Code may catch any error, so our lock timeout must not reach it: it waits for rows as in stock Django, while nobody
waits behind it for longer than the block budget. If we interrupt it, the watchdog keeps the verdict, which is raised at
its end. It runs again only after that or a deadlock, and only if it has committed nothing: it is in a transaction, did
not end that, and changed nothing elsewhere.
"""

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import RunPython
from psycopg.pq import TransactionStatus

from ..apps import NAME
from ..exceptions import GaveWay, HalfCommitted, Interrupted, ZeroDowntimeError, in_full
from ..postgres import locks, statements

if TYPE_CHECKING:
    from .guard import Guard

HALF_WAY = (
    "Its code was interrupted half-way. What it committed stays, and it was not run again. If it may run twice, "
    f"put @repeatable ({NAME}.operations) on its functions; else repair what is half done."
)

LIMIT = "SELECT set_config('lock_timeout', %s, %s), now()"


class Code:
    """The author's code, during a ``with``.

    Args:
        bears_repeating: whether its author says that it may run twice.

    Raises:
        GaveWay: if we interrupted it and it may run again.
        Interrupted: if we interrupted it and it may have committed something and may not run twice.
        HalfCommitted: if it ended the transaction around it.
        BlockedTooLong: if a session waited for it longer than the block budget.
    """

    def __init__(self, guard: "Guard", *, bears_repeating: bool) -> None:
        self.guard, self.bears_repeating = guard, bears_repeating
        self.in_transaction, self.could_repeat = guard.in_transaction, guard.may_repeat
        guard.may_repeat = self.could_repeat and (self.in_transaction or bears_repeating)
        self.limits: dict[str, str] = {}
        """The settings of the running statement: our lock timeout if others queue behind it for a table."""
        self._has_ended_transaction = False
        self._others = ExitStack()

    def __enter__(self) -> None:
        self.guard.watchdog.forgive()
        self._began = self._limit(self.guard.before["lock_timeout"])
        for connection in connections.all(initialized_only=True):
            if connection is not self.guard.connection and not self._is_ledger(connection):
                self._others.enter_context(connection.execute_wrapper(self._statement_elsewhere))

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._others.close()
        if self.guard.connection.connection is not None:
            now = self._limit(self.guard.settings["lock_timeout"])
            is_another = self.in_transaction and None not in {now, self._began} and now != self._began
            self._has_ended_transaction |= is_another
        if error is not None and not isinstance(error, Exception):
            return
        if failure := self._failure(error):
            raise failure from error
        if error is None and not self.in_transaction:
            self.guard.may_repeat = self.could_repeat  # it has ended, and the journal says so
        elif error is not None and locks.sqlstate(error) != locks.DEADLOCK:
            self.guard.may_repeat = False  # the error is its own

    def look_at(self, sql: str) -> None:
        """Note the next statement."""
        session = self.guard.connection.connection
        if self.in_transaction and session.info.transaction_status == TransactionStatus.IDLE:
            self._has_ended_transaction = True
        if self._has_ended_transaction or statements.commits(sql):
            self._may_have_committed()
        is_limited = statements.holds_up(sql) and "NOWAIT" not in sql.upper()
        self.limits = {"lock_timeout": self.guard.settings["lock_timeout"]} if is_limited else {}

    def note(self, error: Exception) -> None:
        """Keep the error of a statement as a verdict if we caused it."""
        if isinstance(error, ZeroDowntimeError):
            self.guard.watchdog.judge(error)
        elif self.limits and locks.sqlstate(error) == locks.LOCK_NOT_AVAILABLE:
            self.guard.watchdog.judge(GaveWay(in_full(error)))

    def elsewhere(self, connection: BaseDatabaseWrapper) -> None:
        """Note that something in this process opens another session or may change something in one."""
        if self._is_ledger(connection):
            return
        self._may_have_committed()
        if connection.vendor == "postgresql" and not self.guard.has_told_unwatched:
            self.guard.has_told_unwatched = True
            who = f"process {connection.connection.info.backend_pid}, of the connection {connection.alias}"
            text = f"The migration also works in another session ({who}). The watchdog does not see who waits for that."
            self.guard.report("note", text=text)

    def _failure(self, error: Exception | None) -> ZeroDowntimeError | None:
        """Return the error to raise in place of the code's own error or success; None to leave that."""
        verdict = self.guard.watchdog.verdict
        if self._has_ended_transaction:
            then = verdict or error
            return HalfCommitted(in_full(then) if then else "")
        if verdict is None or self.guard.may_repeat:
            return verdict
        told = f"{verdict}\n{HALF_WAY}"
        return Interrupted(told) if isinstance(verdict, GaveWay) else verdict.saying(told)

    def _may_have_committed(self) -> None:
        self.guard.may_repeat = self.guard.may_repeat and self.bears_repeating

    def _limit(self, lock_timeout: str) -> Any:
        """Set the lock timeout, in the transaction if there is one, else in the session.

        Returns:
            The start of the transaction; None if it has failed.
        """
        with self.guard.quietly(), suppress(Error), self.guard.connection.cursor() as cursor:
            cursor.execute(LIMIT, [lock_timeout, self.in_transaction])
            return cursor.fetchone()[1]
        return None

    def _statement_elsewhere(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if statements.Statement(str(sql)).verb != "SELECT":
            self.elsewhere(context["connection"])
        return execute(sql, params, many, context)

    def _is_ledger(self, connection: BaseDatabaseWrapper) -> bool:
        return connection.alias == f"{self.guard.connection.alias}_ledger"


def is_code(operation: Any) -> bool:
    """Whether the operation runs the author's code."""
    inner, module = getattr(operation, "database_operations", ()), type(operation).__module__
    if inner or module.startswith(f"{NAME}."):
        return any(map(is_code, inner))
    return not (operation.reduces_to_sql and module.startswith("django."))


def bears_repeating(operation: Any) -> bool:
    """Whether the operation may run twice: its code, or each of its functions, is ``repeatable``."""
    if inner := getattr(operation, "database_operations", ()):
        return all(map(bears_repeating, inner))
    functions = {getattr(operation, name, None) for name in ("code", "reverse_code")} - {None, RunPython.noop}
    says_so = [getattr(one, "repeatable", False) for one in functions or {operation}]
    return not is_code(operation) or all(says_so)
