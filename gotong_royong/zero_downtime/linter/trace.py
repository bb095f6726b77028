"""What does each migration do? They are run one after another in the scratch database, while one state rolls on.

A migration under judgement is run up and down, and stays up: the way down of an atomic one is rolled back, another one
goes up again. Whatever it does, it is stopped after a while, reaches no network and no other database, and the next one
is run all the same.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, RunSQL, SeparateDatabaseAndState
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from psycopg.pq import TransactionStatus

from ..exceptions import ZeroDowntimeError, in_full, summary
from ..running.loader import file_of, is_own
from ..running.states import Move, Rolling, with_inner
from ..stages import Key, Stage, said_stage
from .code import Code
from .differences import defined_otherwise
from .earlier_runs import EarlierRuns
from .facts import Column, Direction, Failure, Index, Pass, Trace
from .failures import failure_of, is_of_the_code
from .observer import Observer, OutOfBounds
from .reached import Reached
from .rows import insert_rows
from .sandbox import TooLong, allow, call, sandboxed, watch

LIMIT = 10.0  # seconds for one operation; on empty tables most take milliseconds
LIMIT_OF_REHEARSAL = 2.0  # seconds; a loop may go round for ever where no row is as it wants it

FAILS = (Exception, SystemExit, TooLong, OutOfBounds)
"""How a migration may end before its end. Ctrl-C ends the linter."""


Failed = dict[Key, str]
"""Migrations of which the scratch database has nothing, or not all, and why."""


class _Undo(Exception):
    """Ends a transaction that has shown what it does."""


def fill(
    connection: BaseDatabaseWrapper,
    loader: MigrationLoader,
    keys: Collection[Key],
    stopped: Mapping[Key, Failure] = {},
) -> Failed:
    """Run migrations without looking, as the ground for others; return those that are not there, and why."""
    rolling, failed = Rolling(ProjectState(real_apps=loader.unmigrated_apps)), Failed()
    observer = Observer(connection)
    for key in keys:
        migration, before = loader.graph.nodes[key], rolling.snapshot()
        if key in stopped:
            _follow(rolling, migration)
            failed[key] = stopped[key].message
            continue
        watch.begin(key)
        try:
            with (
                sandboxed(LIMIT * len(migration.operations)),
                observer.watching(blind=True),
                connection.schema_editor(atomic=migration.atomic) as editor,
            ):
                for operation in migration.operations:
                    call(rolling.perform, operation, migration, editor)
        except FAILS as error:  # whatever it is, it is no failure of those under judgement
            failed[key] = in_full(error)
            _recover(connection)
            rolling = before
            _follow(rolling, migration)
        connection.connection.execute("RESET search_path")  # as the next session does
    EarlierRuns().end(connection, rolling)
    watch.go_on("")
    return failed


def traces(
    connection: BaseDatabaseWrapper,
    loader: MigrationLoader,
    ground: Collection[Key],
    plan: Collection[Key],
    judged: Collection[Key],
    *,
    one_deploy: bool = False,
    limit: float = LIMIT,
    stopped: Mapping[Key, Failure] = {},
    missing: Mapping[Key, str] = {},
) -> Iterator[Trace]:
    """Run the migrations of ``plan``, and yield a trace of each that is in ``judged``.

    Args:
        ground: what has been run in the database already, but for what is ``missing``, and why.
        one_deploy: whether all of the plan is deployed at once, so that what it makes itself has no users.
        limit: seconds for each operation.
        stopped: those that are not to be run, and why.
    """
    rolling = _rolled(loader, ground)
    earlier_runs = EarlierRuns(rolling)
    observer = Observer(connection)
    run = _Runner(connection, observer, limit)
    newest = any(_is_contract(loader.graph.nodes[key]) for key in plan)
    final = Code(_rolled(loader, everything(loader)) if newest else None)
    conflicts = loader.detect_conflicts()
    running = written = Code(rolling)
    failed = Failed(missing)
    added: set[tuple[str, str]] = set()
    indexed: dict[tuple[str, str], tuple[str, str]] = {}
    for key in plan:
        migration = loader.graph.nodes[key]
        observer.come_back()
        if not one_deploy:
            observer.of_before, running = set(observer.catalog), written
        code_before = written
        watch.begin(key)
        if not one_deploy and any(_is_code(one) or _is_sql(one) for one in migration.operations):
            observer.look_away(partial(earlier_runs.end, connection, rolling))
        if key in stopped:
            _follow(rolling, migration)
            moves, up = list[Move](), Pass(Direction.UP, failure=stopped[key])
        else:
            moves, up = run.up(migration, rolling, rehearse=key in judged)
        written = Code(rolling, code_before)
        because_of = next((one for one in loader.graph.forwards_plan(key) if one in failed), None) if failed else None
        if key in judged:
            down, reruns = None, {}
            if not up.failure and all(one.reversible for one in with_inner(*migration.operations)):
                reruns = run.again(migration, moves) if not migration.atomic else {}
                down = run.down(migration, moves)
            leaves = conflicts.get(key[0], ())
            yield Trace(
                migration,
                up,
                down,
                running=final if _is_contract(migration) else running,
                code_before=code_before,
                written=written,
                catalog=observer.catalog,
                indexed=dict(indexed),
                reruns=reruns,
                otherwise=tuple(defined_otherwise(connection, written, up.changes)),
                because_of=f"{'.'.join(because_of)} ({failed[because_of]})" if because_of else "",
                alias=connection.alias,
                path=path_of(migration),
                own=is_own(key[0]),
                leaves=tuple(sorted(leaves)) if key[1] in leaves else (),
            )
        for change in up.changes:
            if change.before is None and isinstance(change.after, Column):
                added.add((change.table, change.name))
            elif change.before is None and isinstance(change.after, Index):
                places = {(change.table, column) for column in change.after.columns} & added
                indexed |= dict.fromkeys(places, (change.name, str(migration)))
        if up.failure:
            failed[key] = up.failure.message


def everything(loader: MigrationLoader) -> list[Key]:
    """Return all migrations, each after those that it depends on."""
    plans = map(loader.graph.forwards_plan, sorted(loader.graph.leaf_nodes()))
    return list(dict.fromkeys(key for plan in plans for key in plan))


def _rolled(loader: MigrationLoader, keys: Collection[Key]) -> Rolling:
    """Return the state that these migrations lead to."""
    rolling = Rolling(ProjectState(real_apps=loader.unmigrated_apps))
    for key in keys:
        _follow(rolling, loader.graph.nodes[key])
    return rolling


def _follow(rolling: Rolling, migration: Migration, done: int = 0) -> None:
    """Let the state roll over what a migration has not done; what does not fit it is left out."""
    for operation in migration.operations[done:]:
        with suppress(Exception):
            rolling.forwards(operation, migration.app_label)


class _Runner:
    """Runs single migrations in the scratch database while an observer looks."""

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
        _follow(rolling, migration, len(moves))
        return moves, passed

    def down(self, migration: Migration, moves: list[Move]) -> Pass:
        """Run it backwards, and see to it that it is up again."""
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

    def again(self, migration: Migration, moves: list[Move]) -> dict[int, str]:
        """Run each raw statement a second time; return for each operation why that fails."""
        raw = [(number, move) for number, move in enumerate(moves) if _is_sql(move[0])]
        passes = {
            number: self._pass(migration, Direction.UP, partial(self._forwards, migration, [(number, move)]))
            for number, move in raw
        }
        return {number: passed.failure.message for number, passed in passes.items() if passed.failure}

    def _forwards(self, migration: Migration, moves: list[tuple[int, Move]], editor: Any) -> None:
        for number, (operation, before, after) in moves:
            self._operation(migration, number, editor, operation.database_forwards, before, after)

    def _try(self, migration: Migration, number: int, *move: Any, rehearse: bool = True) -> None:
        """Run an operation; once more where there are rows, if that may be another thing."""
        operation = migration.operations[number]
        reached = Reached(operation, self.direction)
        with reached.watching():
            self._operation(migration, number, *move)
            if rehearse and (_is_code(operation) or self._has_changed_rows(number)):
                self._rehearse(migration, number, *move)
        self.missed += [Failure(number, what) for what in reached.missed()]

    def _has_changed_rows(self, number: int) -> bool:
        """Whether the operation sent an UPDATE or the like."""
        return any(one.operation == number and one.writes and not one.changes for one in self.observer.statements)

    def _rehearse(
        self, migration: Migration, number: int, editor: Any, run: Any, old: ProjectState, new: ProjectState
    ) -> None:
        """Run code that changes data once more where the tables that it used have rows, and undo that."""
        done, failed, filled = len(self.observer.statements), len(self.stumbles), set[str]()
        while not (used := self._used(number)) <= filled:  # code that finds rows in one table may go on to another
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
            except FAILS as error:  # on rows that are made up, nothing else has to succeed
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
        put_off = len(editor.deferred_sql)
        alone = not editor.atomic_migration and _has_transaction(migration, number)
        with transaction.atomic(self.connection.alias) if alone else nullcontext():
            call(run, migration.app_label, editor, old, new)
        self.observer.put_off.update((str(sql), number) for sql in editor.deferred_sql[put_off:])

    def _pass(self, migration: Migration, direction: Direction, run: Any, *, undo: bool = False) -> Pass:
        observer = self.observer
        observer.statements, observer.put_off, observer.operation = [], {}, 0
        observer.report_counts()
        before, failure = dict(observer.catalog), None
        self.direction, self.stumbles, self.missed = direction, [], []
        enums = observer.enums() if any(_is_sql(one) or _is_code(one) for one in migration.operations) else frozenset()
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
        except FAILS as error:  # that it fails is what is to be told
            failure = failure_of(error, observer.operation, self.limit)
            _recover(self.connection)
            if migration.atomic:
                observer.rolled_back(before)
            else:
                observer.refresh(set(observer.tables()) | set(observer.catalog))
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


def _recover(connection: BaseDatabaseWrapper) -> None:
    """Begin a new session unless the old one is at rest, as it is after a proper rollback."""
    session = connection.connection
    if session is None or session.closed or session.info.transaction_status != TransactionStatus.IDLE:
        connection.close()
        connection.connect()


def _is_code(operation: Operation) -> bool:
    """Whether what it does cannot be written as SQL."""
    return any(not one.reduces_to_sql for one in with_inner(operation))


def _is_sql(operation: Operation) -> bool:
    """Whether it is SQL that the migration has written itself, and nothing else."""
    inner = [one for one in with_inner(operation) if not isinstance(one, SeparateDatabaseAndState)]
    return bool(inner) and all(isinstance(one, RunSQL) for one in inner)


def _has_transaction(migration: Migration, number: int) -> bool:
    operation = migration.operations[number]
    return bool(operation.atomic or (migration.atomic and operation.atomic is not False))


def _is_contract(migration: Migration) -> bool:
    return said_stage(migration) == Stage.POST_DEPLOY


def path_of(migration: Migration) -> str:
    """Return the file of the migration, as seen from here; nothing if it has none."""
    file = file_of(migration)
    return os.path.relpath(file) if file else ""
