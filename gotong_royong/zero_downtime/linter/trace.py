"""What does each migration of a plan do? They run one after another in the scratch database, while one state rolls on.

A migration under judgement runs up and down and stays up: PostgreSQL rolls back the way down of an atomic one, and
another one goes up again. One that fails does not keep the next ones from running.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

from ..exceptions import in_full
from ..running.loader import file_of, is_own
from ..running.states import Move, Rolling
from ..stages import Key, Stage, said_stage
from .code import Code
from .differences import mismatches
from .earlier_runs import EarlierRuns
from .facts import Change, Column, Direction, Failure, Index, Pass, Trace
from .observer import Observer
from .runner import FAILS, LIMIT, Runner, follow, is_code, is_sql, recover
from .sandbox import call, sandboxed, watch

Failed = dict[Key, str]
"""Migrations of which the scratch database has nothing, or not all, and why."""


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
            follow(rolling, migration)
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
        except FAILS as error:  # no migration under judgement failed: this one is only their ground
            failed[key] = in_full(error)
            recover(connection)
            rolling = before
            follow(rolling, migration)
        connection.connection.execute("RESET search_path")  # as in the next session
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
        ground: what the database has already, without what is ``missing``, and why.
        one_deploy: whether all of the plan is deployed at once, so that what it makes itself has no users.
        limit: seconds for each operation.
        stopped: migrations that do not run, and why.
    """
    newest = any(_is_contract(loader.graph.nodes[key]) for key in plan)
    final = Code(_rolled(loader, everything(loader)) if newest else None)
    run = _PlanRun(connection, loader, ground, one_deploy=one_deploy, limit=limit, stopped=stopped)
    conflicts = loader.detect_conflicts()
    failed, indexed = Failed(missing), _Indexed()
    for key in plan:
        migration = loader.graph.nodes[key]
        moves, up = run.up(key, migration, is_judged=key in judged)
        if key in judged:
            down, reruns = (None, {}) if up.failure else run.runner.back(migration, moves)
            leaves = conflicts.get(key[0], ())
            yield Trace(
                migration,
                up,
                down,
                running=final if _is_contract(migration) else run.running,
                code_before=run.code_before,
                written=run.written,
                catalog=run.observer.catalog,
                indexed=dict(indexed.by),
                reruns=reruns,
                mismatches=tuple(mismatches(connection, run.written, up.changes)),
                because_of=_because_of(loader, key, failed),
                alias=connection.alias,
                path=path_of(migration),
                own=is_own(key[0]),
                leaves=tuple(sorted(leaves)) if key[1] in leaves else (),
            )
        indexed.add(migration, up.changes)
        if up.failure:
            failed[key] = up.failure.message


class _PlanRun:
    """A plan that runs up in the scratch database, migration by migration.

    Attributes:
        running: what the code names that runs while the migration is applied.
        code_before: what the state before the migration names, and ``written`` that after it.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        loader: MigrationLoader,
        ground: Collection[Key],
        *,
        one_deploy: bool,
        limit: float,
        stopped: Mapping[Key, Failure],
    ) -> None:
        self.connection, self.one_deploy, self.stopped = connection, one_deploy, stopped
        self.rolling = _rolled(loader, ground)
        self.earlier_runs = EarlierRuns(self.rolling)
        self.observer = Observer(connection)
        self.runner = Runner(connection, self.observer, limit)
        self.running = self.code_before = self.written = Code(self.rolling)

    def up(self, key: Key, migration: Migration, *, is_judged: bool) -> tuple[list[Move], Pass]:
        """Run the next migration up; return what each operation finds, and what it did."""
        observer, self.code_before = self.observer, self.written
        observer.reset_search_path()
        watch.begin(key)
        if not self.one_deploy:
            observer.of_before, self.running = set(observer.catalog), self.written
            if any(is_code(one) or is_sql(one) for one in migration.operations):
                observer.look_away(partial(self.earlier_runs.end, self.connection, self.rolling))
        if key in self.stopped:
            follow(self.rolling, migration)
            moves, up = list[Move](), Pass(Direction.UP, failure=self.stopped[key])
        else:
            moves, up = self.runner.up(migration, self.rolling, rehearse=is_judged)
        self.written = Code(self.rolling, self.code_before)
        return moves, up


class _Indexed:
    """The columns that migrations of the plan added to tables of before, and then gave an index.

    Attributes:
        by: by table and column, the index and the migration.
    """

    def __init__(self) -> None:
        self.by: dict[tuple[str, str], tuple[str, str]] = {}
        self._added: set[tuple[str, str]] = set()

    def add(self, migration: Migration, changes: Collection[Change]) -> None:
        for change in changes:
            if change.before is None and isinstance(change.after, Column):
                self._added.add((change.table, change.name))
            elif change.before is None and isinstance(change.after, Index):
                places = {(change.table, column) for column in change.after.columns} & self._added
                self.by |= dict.fromkeys(places, (change.name, str(migration)))


def everything(loader: MigrationLoader) -> list[Key]:
    """Return all migrations, each after those that it depends on."""
    plans = map(loader.graph.forwards_plan, sorted(loader.graph.leaf_nodes()))
    return list(dict.fromkeys(key for plan in plans for key in plan))


def _rolled(loader: MigrationLoader, keys: Collection[Key]) -> Rolling:
    """Return the state that these migrations lead to."""
    rolling = Rolling(ProjectState(real_apps=loader.unmigrated_apps))
    for key in keys:
        follow(rolling, loader.graph.nodes[key])
    return rolling


def _because_of(loader: MigrationLoader, key: Key, failed: Failed) -> str:
    """Name the first migration that failed and that this one depends on, and say why; nothing if there is none."""
    first = next((one for one in loader.graph.forwards_plan(key) if one in failed), None) if failed else None
    return f"{'.'.join(first)} ({failed[first]})" if first else ""


def _is_contract(migration: Migration) -> bool:
    return said_stage(migration) == Stage.POST_DEPLOY


def path_of(migration: Migration) -> str:
    """Return the file of the migration, relative to the current folder; nothing if it has none."""
    file = file_of(migration)
    return os.path.relpath(file) if file else ""
