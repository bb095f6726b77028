"""Which migrations does a rollback take back, can they be taken back, and what would be lost with them?

This room chooses and looks; the executor carries it out. Nothing here changes the database, and the ledger, which
remembers it all, is never among them: `migrate zero_downtime zero` drops that.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from django.db import connections
from django.db.migrations import Migration, operations
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.exceptions import NotUndoable, counted
from gotong_royong.zero_downtime.ledger import APP, exists
from gotong_royong.zero_downtime.models import Run, Status, Step
from gotong_royong.zero_downtime.stages import Key, Plan, key_of
from gotong_royong.zero_downtime.states import with_inner

COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"


class Loss(NamedTuple):
    """What goes when a migration is taken back: how many rows of a table, or values of a column."""

    migration: Migration
    noun: str
    of: str
    number: int

    def __str__(self) -> str:
        return f"{counted(self.number, self.noun)} of {self.of}"


def batch(executor: MigrationExecutor, alias: str, run_id: int | None = None) -> set[Key]:
    """Return what one run applied and is still applied: of the run with that id, else of the last one that has any.

    Raises:
        NotUndoable: if there is no such run, or nothing of it is left to take back.
    """
    if not exists(connections[alias]):
        raise NotUndoable("This database has no ledger yet, so there is no run to take back. Use rollback --steps N.")
    ups = Step.objects.using(alias).filter(direction=Step.Direction.UP, status=Status.SUCCEEDED).order_by("-pk")
    if run_id is not None:
        if not Run.objects.using(alias).filter(pk=run_id).exists():
            raise NotUndoable(f"There is no run {run_id}. See showmigrations for the runs that applied something.")
        ups = ups.filter(run=run_id)
    latest: dict[Key, int] = {}
    for run, app, name in Step.objects.using(alias).filter(status=Status.SUCCEEDED).values_list("run", "app", "name"):
        latest[app, name] = max(run, latest.get((app, name), 0))
    for run, app, name in ups.values_list("run", "app", "name"):
        if (app, name) in executor.loader.applied_migrations and latest[app, name] == run:
            return {
                (app, name)
                for app, name in ups.filter(run=run).values_list("app", "name")
                if (app, name) in executor.loader.applied_migrations and latest[app, name] == run
            }
    if run_id is not None:
        raise NotUndoable(f"Nothing that run {run_id} applied is still applied.")
    return set()


def last_steps(executor: MigrationExecutor, count: int) -> set[Key]:
    """Return the migrations that were applied last, ``count`` of them.

    Raises:
        NotUndoable: if there are not as many.
    """
    applied = MigrationRecorder(executor.connection).migration_qs.order_by("-id").values_list("app", "name")
    known = [key for key in applied if key in executor.loader.graph.nodes and key[0] != APP]
    if not 0 < count <= len(known):
        raise NotUndoable(f"Cannot take back {count} steps: {len(known)} are applied.")
    return set(known[:count])


def later_than(executor: MigrationExecutor, timestamp: str) -> set[Key]:
    """Return every applied migration of any app that comes after ``timestamp``, and what depends on one of them.

    Raises:
        NotUndoable: if no migration has that timestamp.
    """
    stamps = {key: match[0] for key in executor.loader.graph.nodes if (match := re.match(r"[0-9]{14}", key[1]))}
    if timestamp not in stamps.values():
        raise NotUndoable(
            f"No migration has the timestamp {timestamp}. Write the 14 digits that a migration's name begins with, "
            "as in rollback --to 20260210120000; showmigrations lists them."
        )
    later = [key for key, stamp in stamps.items() if stamp > timestamp]
    return {
        needing
        for key in later
        for needing in executor.loader.graph.backwards_plan(key)
        if needing in executor.loader.applied_migrations and needing[0] != APP
    }


def plan_of(executor: MigrationExecutor, chosen: set[Key]) -> Plan:
    """Return the steps down, newest first.

    Raises:
        NotUndoable: names the applied migration that needs one of these, or the operation that has no way back.
    """
    graph, applied = executor.loader.graph, executor.loader.applied_migrations
    for key in sorted(chosen):
        for needing in graph.backwards_plan(key):
            if needing in applied and needing not in chosen:
                raise NotUndoable(
                    f"{'.'.join(key)} cannot be taken back while {'.'.join(needing)}, which needs it, is applied. "
                    f"Take back more: rollback --to with an earlier timestamp, or rollback --steps."
                )
    full = [migration for migration, _ in executor.migration_plan(graph.leaf_nodes(), clean_start=True)]
    plan = [(migration, True) for migration in reversed(full) if key_of(migration) in chosen]
    for migration, _ in plan:
        refuse_irreversible(migration)
    return plan


def refuse_irreversible(migration: Migration) -> None:
    """Pass if each operation of the migration has a way back.

    Raises:
        NotUndoable: names the one that has none.
    """
    for operation in migration.operations:
        if not operation.reversible:
            raise NotUndoable(
                f"{migration} cannot be taken back: {operation.describe()} has no reverse. Nothing was changed. "
                "Give it a reverse_sql or reverse_code, or restore a backup."
            )


def losses(executor: MigrationExecutor, plan: Plan) -> Iterator[Loss]:
    """Yield what the plan would delete that is there: rows of tables, values of columns that are not null.

    Counts them table by table, and reads the whole of each under ACCESS SHARE. Sets no timeout for that, nor for the
    lock: nobody who reads or writes waits meanwhile.
    """
    for migration, _ in plan:
        state = executor.loader.project_state(key_of(migration))
        for operation in with_inner(*migration.operations):
            for table, column in _dropped(operation, migration.app_label, state):
                count = _count(executor.connection.alias, table, column)
                if count:
                    noun, of = ("value", f"{table}.{column}") if column else ("row", table)
                    yield Loss(migration, noun, of, count)


def _dropped(operation: Operation, app: str, state: ProjectState) -> Iterator[tuple[str, str]]:
    """Yield the tables, and with a column the columns, that going back over the operation drops."""
    if isinstance(operation, operations.CreateModel):
        key = app, operation.name.lower()
        options = state.models[key].options if key in state.models else {"proxy": True}
        if options.get("managed", True) and not options.get("proxy"):
            yield state.apps.get_model(*key)._meta.db_table, ""
    elif isinstance(operation, operations.AddField):
        key = app, operation.model_name_lower
        if key in state.models and operation.name in state.models[key].fields:
            field = state.apps.get_model(*key)._meta.get_field(operation.name)
            if field.many_to_many:
                yield field.remote_field.through._meta.db_table, ""
            elif column := getattr(field, "column", None):
                yield field.model._meta.db_table, column


def _count(alias: str, table: str, column: str) -> int:
    """Count what is there; nothing where a later migration has dropped the table or the column."""
    quote = connections[alias].ops.quote_name
    with connections[alias].cursor() as cursor:
        cursor.execute(COLUMNS, [quote(table)])
        columns = {name for (name,) in cursor.fetchall()}
        if not columns or (column and column not in columns):
            return 0
        cursor.execute(f"SELECT count({quote(column) if column else '*'}) FROM {quote(table)}")  # noqa: S608
        return int(cursor.fetchone()[0])
