"""What does the ledger remember, and do django_migrations and the files agree with it?

All questions to the ledger about migrations are here. Rows of django_migrations get lost, files get edited after they
were applied. The ledger may know nothing of a migration, or of any; then there is nothing to tell, and what is not
recorded as applied is run.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import CreateModel, RunPython, RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Exists, Model, OuterRef, Prefetch, Q, QuerySet
from django.db.models.expressions import RawSQL

from gotong_royong.zero_downtime.exceptions import HistoryLost, LedgerNotReadable
from gotong_royong.zero_downtime.journal import Entry, Kind, Past
from gotong_royong.zero_downtime.loader import Loader, checksum
from gotong_royong.zero_downtime.models import Effect, Run, Status, Step
from gotong_royong.zero_downtime.stages import Key, Plan, key_of
from gotong_royong.zero_downtime.statements import Object

# A table that is looked for along the search path is found only in a schema that the role may use.
TABLES = """
    SELECT relname, format('%%I.%%I', nspname, relname), quote_ident(current_user),
           has_table_privilege(pg_class.oid, 'SELECT')
    FROM unnest(%s::text[]) AS wanted JOIN pg_class ON pg_class.oid = to_regclass(wanted)
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
"""
# One look into an index for each, however many steps there are.
LATEST_STEPS = """(
    SELECT latest.id FROM unnest(%s::text[], %s::text[]) AS key (app, name)
    CROSS JOIN LATERAL (
        SELECT id FROM {table} AS step
        WHERE step.app = key.app AND step.name = key.name AND step.status = 'succeeded'
        ORDER BY step.id DESC LIMIT 1
    ) AS latest
)"""

DATA = RunPython, RunSQL
NAMED = 5  # edited migrations, before the sentence only counts them


def tables(alias: str) -> dict[type[Model], str]:
    """Return the ledger's tables that the database has, each with its schema and quoted; none where it has no ledger.

    Raises:
        LedgerNotReadable: if one is there, and this role may not read it.
    """
    if connections[alias].vendor != "postgresql":
        return {}
    by_name: dict[str, type[Model]] = {model._meta.db_table: model for model in (Run, Step, Effect)}
    with connections[alias].cursor() as cursor:
        cursor.execute(TABLES, [list(by_name)])
        rows = cursor.fetchall()
    if closed := [name for _, name, _, may_read in rows if not may_read]:
        raise LedgerNotReadable(closed, rows[0][2])
    return {by_name[name]: full for name, full, *_ in rows}


def latest_steps(alias: str, keys: Collection[Key], *columns: str) -> dict[Key, Any]:
    """Return the last successful step of each of these migrations that has one.

    Args:
        columns: which attributes the steps shall have beside app, name and direction; times cost the most.
    """
    if not (table := tables(alias).get(Step)):
        return {}
    sql = LATEST_STEPS.format(table=table)
    latest = RawSQL(sql, [[app for app, _ in keys], [name for _, name in keys]])  # noqa: S611
    steps = Step.objects.using(alias).filter(pk__in=latest)
    rows = steps.values_list("app", "name", "direction", *columns, named=True)
    return {(step.app, step.name): step for step in rows}


def failed(alias: str) -> set[Key]:
    """Return the migrations of which a step failed or was interrupted that had begun to do something for good."""
    if Effect not in tables(alias):
        return set()
    unfinished = Step.objects.using(alias).exclude(status=Status.SUCCEEDED)
    lasting = unfinished.filter(Exists(Effect.objects.filter(step=OuterRef("pk"))))
    return set(lasting.values_list("app", "name").distinct())


def steps_since_reset(alias: str, key: Key) -> "QuerySet[Step]":
    """Return the steps of a migration before which nothing is left of what earlier ones did.

    That is so after a way back that left nothing, and before what was applied twice in a row. Each is looked for by the
    index, from the end.
    """
    steps = Step.objects.using(alias).filter(app=key[0], name=key[1])
    ends = steps.filter(status=Status.SUCCEEDED).order_by("-pk")
    last = list(ends.values_list("pk", "direction")[:2])
    if [direction for _, direction in last] == [Step.Direction.UP, Step.Direction.UP]:
        return steps.filter(pk__gt=last[1][0])
    some_stayed = Exists(Effect.objects.filter(step=OuterRef("pk"), kind=Kind.ENDED))
    whole = ends.filter(~some_stayed | Q(run__command="rollback"), direction=Step.Direction.DOWN)
    return steps.filter(pk__gt=whole.values_list("pk", flat=True).first() or 0)


def past(alias: str, key: Key) -> Past:
    """Return what the ledger tells of the migration since it was taken back last."""
    past = Past()
    if Effect not in tables(alias):
        return past
    effects = Prefetch("effects", Effect.objects.using(alias))
    steps = steps_since_reset(alias, key).order_by("pk")
    for step in steps.only("pk", "run", "direction", "status").prefetch_related(effects):
        told = sorted(step.effects.all(), key=lambda effect: effect.pk)
        is_up, is_done = step.direction == Step.Direction.UP, step.status == Status.SUCCEEDED
        if is_up and past.complete:  # somebody took it back without the ledger
            past = Past()
        entries = [
            Entry(e.operation, Kind(e.kind), e.what, tuple(Object(*each) for each in e.objects_named)) for e in told
        ]
        if is_up:
            for entry in entries:
                past.add(entry, step.run_id)
            past.complete = is_done
            continue
        for number in (entry.operation for entry in entries if entry.kind == Kind.ENDED):
            past.pop(number, None)
            past.taken_back.add(number)
        if is_done:
            past = past.rest() if past.taken_back else Past()
    return past


def is_done(alias: str, key: Key, direction: str) -> bool:
    """Whether django_migrations says that the step was committed, whatever became of who committed it."""
    return (key in MigrationRecorder(connections[alias]).applied_migrations()) is (direction == Step.Direction.UP)


def applied_by(alias: str, loader: MigrationLoader, *columns: str) -> dict[Key, Any]:
    """Return of the applied migrations of the graph the steps that did it, as far as the ledger knows them.

    A migration whose last step went down, though Django says that it is applied, was applied by somebody else.
    """
    steps = latest_steps(alias, loader.graph.nodes.keys() & loader.applied_migrations.keys(), *columns)
    return {key: step for key, step in steps.items() if step.direction == Step.Direction.UP}


def remembered(alias: str, loader: MigrationLoader) -> dict[Key, Any]:
    """Return the last step, up or down, of each migration that ``named`` returns."""
    return latest_steps(alias, named(loader), "pk", "run", "checksum", "faked")


def vouching(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> list[Any]:
    """Return the steps that applied the migration: its own, or of a squash those of all that it replaces.

    None if one of them is not known, or was taken back since.
    """
    steps = _latest(loader, key, memory)
    return steps if all(step and step.direction == Step.Direction.UP for step in steps) else []


def _latest(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> list[Any]:
    """Return the last step of the migration, or of each that it replaces if one of those has a later one."""
    own, migration = memory.get(key), loader.disk_migrations.get(key)
    replaced = [step for part in (migration.replaces if migration else ()) for step in _latest(loader, part, memory)]
    return replaced if any(step and (own is None or step.pk > own.pk) for step in replaced) else [own]


def named(loader: MigrationLoader) -> set[Key]:
    """Return the migrations that have files, what they replace, and what is applied."""
    files = loader.disk_migrations
    replaced = ((app, name) for migration in files.values() for app, name in migration.replaces)
    return {*files, *loader.applied_migrations, *replaced}


def edited(loader: MigrationLoader, memory: dict[Key, Any]) -> list[Migration]:
    """Return the applied migrations whose files are not what they were when they were applied, in the order of names.

    One look into each file. A file that is gone is not an edited one.
    """
    applied = (
        (loader.graph.nodes[key], memory[key])
        for key in memory.keys() & loader.graph.nodes.keys()
        if key in loader.applied_migrations and memory[key].direction == Step.Direction.UP
    )
    return sorted((migration for migration, step in applied if is_edited(migration, step)), key=str)


def is_edited(migration: Migration, step: Any) -> bool:
    """Whether the migration's file has changed since that step, as far as both are known."""
    return bool(step.checksum) and checksum(migration) not in {"", step.checksum}


def warning(edited: Sequence[Migration]) -> str:
    """Say in one sentence which applied migrations have been edited, and what to do."""
    names = ", ".join(map(str, edited[:NAMED]))
    more = f" and {len(edited) - NAMED} more" if len(edited) > NAMED else ""
    return (
        f"Edited since they were applied here: {names}{more}. This database has what the files said then: "
        "restore them from version control, and bring the change in a new migration (makemigrations)."
    )


def lost(connection: BaseDatabaseWrapper, loader: Loader, memory: dict[Key, Any]) -> list[Migration]:
    """Return the migrations that django_migrations has lost and for which the ledger is a witness.

    It is one for a migration whose last step succeeded upwards, with the file that is there now, and for a squash if
    it is one for all that the squash replaces. Nothing else is: not what the tables look like. But where a table is
    missing that the app's models have, somebody has taken something back without the ledger, so it is no witness.
    """
    nodes, applied = loader.graph.nodes, loader.applied_migrations
    found = [key for key in nodes if key not in applied and _is_witnessed(loader, nodes[key], memory)]
    gone = {app for app in {app for app, _ in found} if _tables_missing(connection, loader, app, {*found, *applied})}
    return [nodes[key] for key in found if key[0] not in gone]


def refuse_unwitnessed(connection: BaseDatabaseWrapper, loader: Loader, plan: Plan) -> None:
    """Make sure that no app is migrated from its beginning over what is there, if that changes data.

    Raises:
        HistoryLost: names the table, and the migration that would change data again.
    """
    recorded = {app for app, _ in loader.applied_migrations}
    fresh = [migration for migration, backwards in plan if not backwards and migration.app_label not in recorded]
    data = {one.app_label: one for one in reversed(fresh) if any(isinstance(each, DATA) for each in _done_by(one))}
    there = set(connection.introspection.table_names()) if data else set()
    for migration in fresh if data else ():
        app = migration.app_label
        for operation in _done_by(migration):
            if app not in data or not isinstance(operation, CreateModel):
                continue
            table = operation.options.get("db_table") or f"{app}_{operation.name_lower}"
            is_made = operation.options.get("managed", True) and not operation.options.get("proxy")
            if is_made and table in there and not _knows(connection.alias, app):
                raise HistoryLost(migration, table, data[app], app)


def _done_by(migration: Migration) -> Iterator[Operation]:
    for operation in migration.operations:
        yield from getattr(operation, "database_operations", [operation])


def _knows(alias: str, app: str) -> bool:
    return Step in tables(alias) and Step.objects.using(alias).filter(app=app).exists()


def _is_witnessed(loader: Loader, migration: Migration, memory: dict[Key, Any]) -> bool:
    steps = vouching(loader, key_of(migration), memory)
    files = {(step.app, step.name): step for step in steps if (step.app, step.name) in loader.disk_migrations}
    return bool(steps) and not any(is_edited(loader.disk_migrations[key], step) for key, step in files.items())


def _tables_missing(connection: BaseDatabaseWrapper, loader: Loader, app: str, known: set[Key]) -> bool:
    """Whether the database lacks a table of a model that the app has after these of its migrations."""
    plan = loader.graph.forwards_plan(loader.graph.leaf_nodes(app)[0])
    last = [key for key in plan if key[0] == app and key in known][-1]
    models = loader.project_state(last).apps.get_models(include_auto_created=True)
    with connection.cursor() as cursor:
        there = set(connection.introspection.table_names(cursor))
    return any(
        model._meta.db_table not in there
        for model in models
        if model._meta.app_label == app and not model._meta.proxy and model._meta.managed and not model._meta.swapped
    )
