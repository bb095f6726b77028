"""What may code of a migration's author count on, and may it run a second time?

Such code, as RunPython calls it, may catch whatever error there is. So none of our limits is an error that it sees: it
waits for rows as in stock Django, for as long as nobody waits behind it for longer than the block budget. What is cut
short by us all the same is remembered as a verdict and raised at its end. It runs a second time only for that or for a
deadlock, and only if nothing of it can be committed: it stands in a transaction, has ended none and has changed nothing
elsewhere.
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
    "Its code was interrupted half-way: what that has committed stays, and it was not run again. Where it bears that, "
    f"put @repeatable ({NAME}.operations) on its functions; else put right what is half done."
)

LIMIT = "SELECT set_config('lock_timeout', %s, %s), now()"


class Code:
    """Code of a migration's author, for as long as the ``with`` lasts.

    Args:
        bears_repeating: whether its author says that it may run again, whatever it has committed.

    Raises:
        GaveWay: if it was interrupted by us, whatever it made of that, and nothing of it is committed.
        Interrupted: the same if something may be, and it does not bear being run again.
        HalfCommitted: if it ended the transaction that it stood in.
        BlockedTooLong: if somebody waited for it for longer than the block budget.
    """

    def __init__(self, guard: "Guard", *, bears_repeating: bool) -> None:
        self.guard, self.bears_repeating = guard, bears_repeating
        self.in_transaction, self.could_repeat = guard.in_transaction, guard.may_repeat
        guard.may_repeat = self.could_repeat and (self.in_transaction or bears_repeating)
        self.limits: dict[str, str] = {}
        """The running statement's own settings: it has our limit if others would queue behind it for a table."""
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
            self.guard.may_repeat = self.could_repeat  # it has come to its end, and the journal says so
        elif error is not None and locks.sqlstate(error) != locks.DEADLOCK:
            self.guard.may_repeat = False  # it is an error of its own

    def look_at(self, sql: str) -> None:
        """Be told the next statement."""
        session = self.guard.connection.connection
        if self.in_transaction and session.info.transaction_status == TransactionStatus.IDLE:
            self._has_ended_transaction = True
        if self._has_ended_transaction or statements.commits(sql):
            self._may_have_committed()
        is_limited = statements.holds_up(sql) and "NOWAIT" not in sql.upper()
        self.limits = {"lock_timeout": self.guard.settings["lock_timeout"]} if is_limited else {}

    def note(self, error: Exception) -> None:
        """Remember the error of a statement if it is of our making."""
        if isinstance(error, ZeroDowntimeError):
            self.guard.watchdog.judge(error)
        elif self.limits and locks.sqlstate(error) == locks.LOCK_NOT_AVAILABLE:
            self.guard.watchdog.judge(GaveWay(in_full(error)))

    def elsewhere(self, connection: BaseDatabaseWrapper) -> None:
        """Be told that it, or anything else in this process, opens another session or changes something in one."""
        if self._is_ledger(connection):
            return
        self._may_have_committed()
        if connection.vendor == "postgresql" and not self.guard.has_told_unwatched:
            self.guard.has_told_unwatched = True
            who = f"process {connection.connection.info.backend_pid}, of the connection {connection.alias}"
            text = f"A migration works in another session, too ({who}). Nobody watches whom that keeps waiting."
            self.guard.report("note", text=text)

    def _failure(self, error: Exception | None) -> ZeroDowntimeError | None:
        """Return what to raise in place of the error, or of the success, that it made of what has happened."""
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
        """Set for how long its statements wait for locks: in its transaction, if it has one, else in the session.

        Returns:
            When the transaction began; None if it has failed, and nothing can be set or asked any more.
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
    """Whether the operation is more than one of Django's or ours: somebody has written what it does."""
    inner, module = getattr(operation, "database_operations", ()), type(operation).__module__
    if inner or module.startswith(f"{NAME}."):
        return any(map(is_code, inner))
    return not (operation.reduces_to_sql and module.startswith("django."))


def bears_repeating(operation: Any) -> bool:
    """Whether the operation may run again after it was interrupted half-way: it, or each function of it, says so."""
    if inner := getattr(operation, "database_operations", ()):
        return all(map(bears_repeating, inner))
    functions = {getattr(operation, name, None) for name in ("code", "reverse_code")} - {None, RunPython.noop}
    says_so = [getattr(one, "repeatable", False) for one in functions or {operation}]
    return not is_code(operation) or all(says_so)
