"""What does one migration do, up and down? The runner runs it in the scratch database while the observer looks.

Each operation has a time limit and reaches no network. One that changes rows runs a second time on made-up rows, and
that is rolled back.
"""

from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, RunSQL, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from psycopg.pq import TransactionStatus

from ..exceptions import ZeroDowntimeError, in_full, summary
from ..running.states import Move, Rolling, with_inner
from .facts import Direction, Failure, Pass
from .failures import failure_of, is_of_the_code
from .observer import Observer, OutOfBounds
from .reached import Reached
from .rows import insert_rows
from .sandbox import TooLong, allow, call, sandboxed

LIMIT = 10.0  # seconds for one operation; on empty tables most take milliseconds
LIMIT_OF_REHEARSAL = 2.0  # seconds; a loop that waits for a row of some kind may never end on made-up rows

FAILS = (Exception, SystemExit, TooLong, OutOfBounds)
"""What ends a migration early. Ctrl-C is not among them: it ends the linter."""


class _Undo(Exception):
    """Rolls back a transaction in which everything was seen."""


class Runner:
    """Runs single migrations in the scratch database.

    Args:
        connection: to the scratch database.
        observer: sees what the connection sends.
        limit: seconds for each operation.
    """

    def __init__(self, connection: BaseDatabaseWrapper, observer: Observer, limit: float) -> None:
        self.connection, self.observer, self.limit = connection, observer, limit
        self.direction = Direction.UP
        self.stumbles: list[Failure] = []
        self.missed: list[Failure] = []

    def up(self, migration: Migration, rolling: Rolling, *, rehearse: bool = False) -> tuple[list[Move], Pass]:
        """Run it forwards and let the state roll on; return what each operation finds, and what it did."""
        moves: list[Move] = []

        def move() -> Move:
            number, operation = len(moves), migration.operations[len(moves)]
            try:
                moves.append((operation, *rolling.step(operation, migration.app_label)))
            except Exception as error:
                self.observer.operation = number
                raise ZeroDowntimeError(
                    f"{operation.describe()!r} does not fit what comes before it: {summary(error)}."
                ) from error
            return moves[-1]

        def run(editor: Any) -> None:
            for number in range(len(migration.operations)):
                operation, before, after = move()
                self._try(migration, number, editor, operation.database_forwards, before, after, rehearse=rehearse)

        passed = self._pass(migration, Direction.UP, run)
        follow(rolling, migration, len(moves))
        return moves, passed

    def back(self, migration: Migration, moves: list[Move]) -> tuple[Pass | None, dict[int, str]]:
        """Run it down after it went up, and leave it up.

        Returns:
            What the way down did, or None if there is no way down; and why each raw operation of a migration that is
            not atomic fails when it runs twice.
        """
        if not all(one.reversible for one in with_inner(*migration.operations)):
            return None, {}
        reruns = {} if migration.atomic else self._rerun(migration, moves)
        return self._down(migration, moves), reruns

    def _down(self, migration: Migration, moves: list[Move]) -> Pass:
        up = dict(self.observer.catalog)

        def run(editor: Any) -> None:
            for number, (operation, before, after) in reversed(list(enumerate(moves))):
                self._try(migration, number, editor, operation.database_backwards, after, before)

        passed = self._pass(migration, Direction.DOWN, run, undo=migration.atomic)
        if migration.atomic:
            self.observer.rolled_back(up)
        else:
            self._pass(migration, Direction.UP, partial(self._forwards, migration, list(enumerate(moves))))
        return passed

    def _rerun(self, migration: Migration, moves: list[Move]) -> dict[int, str]:
        """Run each raw operation a second time; return why it fails."""
        passes = {
            number: self._pass(migration, Direction.UP, partial(self._forwards, migration, [(number, move)]))
            for number, move in enumerate(moves)
            if is_sql(move[0])
        }
        return {number: passed.failure.message for number, passed in passes.items() if passed.failure}

    def _forwards(self, migration: Migration, moves: list[tuple[int, Move]], editor: Any) -> None:
        for number, (operation, before, after) in moves:
            self._operation(migration, number, editor, operation.database_forwards, before, after)

    def _try(self, migration: Migration, number: int, *move: Any, rehearse: bool = True) -> None:
        """Run an operation, and once more on rows if it is code or has changed rows."""
        operation = migration.operations[number]
        reached = Reached(operation, self.direction)
        with reached.watching():
            self._operation(migration, number, *move)
            if rehearse and (is_code(operation) or self._has_changed_rows(number)):
                self._rehearse(migration, number, *move)
        self.missed += [Failure(number, what) for what in reached.missed()]

    def _has_changed_rows(self, number: int) -> bool:
        """Whether the operation sent an UPDATE or the like."""
        return any(one.operation == number and one.writes and not one.changes for one in self.observer.statements)

    def _rehearse(
        self, migration: Migration, number: int, editor: Any, run: Any, old: ProjectState, new: ProjectState
    ) -> None:
        """Run an operation on made-up rows in the tables that it used, and roll that back.

        Code that finds rows in one table may go on to another: it runs again until it uses no other table.
        """
        done, failed, filled = len(self.observer.statements), len(self.stumbles), set[str]()
        while not (used := self._used(number)) <= filled:
            filled |= used
            del self.observer.statements[done:], self.stumbles[failed:]
            allow(min(self.limit, LIMIT_OF_REHEARSAL), number)
            try:
                with (
                    self.observer.rehearsal(alone=not (editor.atomic_migration or _has_transaction(migration, number))),
                    transaction.atomic(self.connection.alias),
                ):
                    tables = [table for table in self.observer.catalog.values() if table.name in filled]
                    self.observer.look_away(partial(insert_rows, self.connection, tables))
                    call(run, migration.app_label, editor, old, new)
                    raise _Undo
            except FAILS as error:  # other errors may come from the made-up values
                if is_of_the_code(error):
                    self.stumbles.append(Failure(number, in_full(error)))
        allow(self.limit, number)

    def _used(self, number: int) -> set[str]:
        """Return the tables that the operation has read or written."""
        sent = [one for one in self.observer.statements if one.operation == number]
        names = {table.name for table in self.observer.catalog.values()}
        return {lock.table for one in sent for lock in (*one.takes, *one.holds)} & names

    def _operation(
        self, migration: Migration, number: int, editor: Any, run: Any, old: ProjectState, new: ProjectState
    ) -> None:
        allow(self.limit, number)
        self.observer.operation = number
        known = len(editor.deferred_sql)
        alone = not editor.atomic_migration and _has_transaction(migration, number)
        with transaction.atomic(self.connection.alias) if alone else nullcontext():
            call(run, migration.app_label, editor, old, new)
        self.observer.deferred.update((str(sql), number) for sql in editor.deferred_sql[known:])

    def _pass(self, migration: Migration, direction: Direction, run: Any, *, undo: bool = False) -> Pass:
        """Run a migration in one direction; return what was seen.

        Args:
            run: is called with the schema editor and runs the operations.
            undo: whether to roll it back at the end.
        """
        observer, failure = self.observer, None
        self.direction, self.stumbles, self.missed = direction, [], []
        before = observer.begin()
        enums = observer.enums() if any(is_sql(one) or is_code(one) for one in migration.operations) else frozenset()
        try:
            with (
                sandboxed(self.limit),
                observer.watching(),
                self.connection.schema_editor(atomic=migration.atomic) as editor,
            ):
                run(editor)
                while editor.deferred_sql:
                    editor.execute(editor.deferred_sql.pop(0), None)
                if undo:
                    self.connection.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                    observer.settle()
                    raise _Undo  # noqa: TRY301
        except _Undo:
            pass
        except FAILS as error:  # the failure is part of the verdict
            failure = failure_of(error, observer.operation, self.limit)
            recover(self.connection)
            if migration.atomic:
                observer.rolled_back(before)
            else:
                observer.refresh_all()
        after = observer.settle()
        gone = enums - observer.enums() if enums and not undo else frozenset()
        changed = {oid for oid in {**before, **after} if before.get(oid) is not after.get(oid)}
        changed = {oid for oid in changed if before.get(oid) != after.get(oid)}
        return Pass(
            direction,
            tuple(observer.statements),
            failure,
            {oid: table for oid, table in before.items() if oid in changed},
            {oid: table for oid, table in after.items() if oid in changed},
            tuple(self.stumbles),
            tuple(self.missed),
            tuple(sorted(gone)),
        )


def follow(rolling: Rolling, migration: Migration, done: int = 0) -> None:
    """Let the state roll over the operations of a migration that did not run, without those that do not fit it."""
    for operation in migration.operations[done:]:
        with suppress(Exception):
            rolling.forwards(operation, migration.app_label)


def recover(connection: BaseDatabaseWrapper) -> None:
    """Open a new session unless the old one is idle, as it is after a proper rollback."""
    session = connection.connection
    if session is None or session.closed or session.info.transaction_status != TransactionStatus.IDLE:
        connection.close()
        connection.connect()


def is_code(operation: Operation) -> bool:
    """Whether what it does cannot be written as SQL."""
    return any(not one.reduces_to_sql for one in with_inner(operation))


def is_sql(operation: Operation) -> bool:
    """Whether it is SQL that the migration has written itself, and nothing else."""
    inner = [one for one in with_inner(operation) if not isinstance(one, SeparateDatabaseAndState)]
    return bool(inner) and all(isinstance(one, RunSQL) for one in inner)


def _has_transaction(migration: Migration, number: int) -> bool:
    operation = migration.operations[number]
    return bool(operation.atomic or (migration.atomic and operation.atomic is not False))
