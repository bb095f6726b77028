"""What does the ledger know of migrations? It may know nothing."""

from collections.abc import Collection, Iterator
from typing import Any

from django.db import connections
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Exists, Model, OuterRef, Prefetch, Q, QuerySet
from django.db.models.expressions import RawSQL

from ..exceptions import LedgerNotReadable
from ..models import Effect, Run, Status, Step
from ..postgres.journal import Entry, Kind, Past
from ..postgres.statements import Object
from ..stages import Key

# to_regclass finds a table only in a schema that the role may use.
TABLES = """
    SELECT relname, format('%%I.%%I', nspname, relname), quote_ident(current_user),
           has_table_privilege(pg_class.oid, 'SELECT')
    FROM unnest(%s::text[]) AS wanted JOIN pg_class ON pg_class.oid = to_regclass(wanted)
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
"""
# One index scan for each migration, however many steps there are.
LATEST_STEPS = """(
    SELECT latest.id FROM unnest(%s::text[], %s::text[]) AS key (app, name)
    CROSS JOIN LATERAL (
        SELECT id FROM {table} AS step
        WHERE step.app = key.app AND step.name = key.name AND step.status = 'succeeded'
        ORDER BY step.id DESC LIMIT 1
    ) AS latest
)"""


def tables(alias: str) -> dict[type[Model], str]:
    """Return the ledger's tables in the database, quoted and with their schema; none if it has no ledger.

    Raises:
        LedgerNotReadable: if this role may not read one of them.
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
        columns: the attributes of the steps beside app, name and direction; times cost the most.
    """
    if not (table := tables(alias).get(Step)):
        return {}
    sql = LATEST_STEPS.format(table=table)
    latest = RawSQL(sql, [[app for app, _ in keys], [name for _, name in keys]])  # noqa: S611
    steps = Step.objects.using(alias).filter(pk__in=latest)
    rows = steps.values_list("app", "name", "direction", *columns, named=True)
    return {(step.app, step.name): step for step in rows}


def failed(alias: str) -> set[Key]:
    """Return the migrations with an unfinished step that has effects in the journal."""
    if Effect not in tables(alias):
        return set()
    unfinished = Step.objects.using(alias).exclude(status=Status.SUCCEEDED)
    lasting = unfinished.filter(Exists(Effect.objects.filter(step=OuterRef("pk"))))
    return set(lasting.values_list("app", "name").distinct())


def steps_since_reset(alias: str, key: Key) -> "QuerySet[Step]":
    """Return the steps of a migration since its effects were last taken back completely.

    They begin after a step down that left nothing; or, if the last two steps that succeeded both went up, after the
    first of the two. Each query uses the index from its end.
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
    """Return the journal of the migration since it was last taken back."""
    past = Past()
    if Effect not in tables(alias):
        return past
    effects = Prefetch("effects", Effect.objects.using(alias))
    steps = steps_since_reset(alias, key).order_by("pk")
    for step in steps.only("pk", "run", "direction", "status").prefetch_related(effects):
        told = sorted(step.effects.all(), key=lambda effect: effect.pk)
        is_up, is_done = step.direction == Step.Direction.UP, step.status == Status.SUCCEEDED
        if is_up and past.complete:  # it was taken back without the ledger
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
    """Whether django_migrations says that the step was committed."""
    return (key in MigrationRecorder(connections[alias]).applied_migrations()) is (direction == Step.Direction.UP)


def applied_by(alias: str, loader: MigrationLoader, *columns: str) -> dict[Key, Any]:
    """Return the steps that applied the graph's applied migrations, as far as the ledger knows them.

    If the last step of an applied migration went down, it was applied without the ledger.
    """
    steps = latest_steps(alias, loader.graph.nodes.keys() & loader.applied_migrations.keys(), *columns)
    return {key: step for key, step in steps.items() if step.direction == Step.Direction.UP}


def remembered(alias: str, loader: MigrationLoader) -> dict[Key, Any]:
    """Return the last step, up or down, of each migration that ``named`` returns."""
    return latest_steps(alias, named(loader), "pk", "run", "checksum", "faked")


def vouching(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> list[Any]:
    """Return the steps that applied the migration: its own, or those of all that a squash replaces.

    The list is empty if one of them is unknown or was taken back since.
    """
    steps = _latest(loader, key, memory)
    return steps if all(step and step.direction == Step.Direction.UP for step in steps) else []


def is_taken_back(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> bool:
    """Whether the last step of the migration, or of a squash that replaces it, went down."""
    step = _last(loader, key, memory)
    return bool(step) and step.direction == Step.Direction.DOWN


def _latest(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> list[Any]:
    """Return the last step of the migration, or of each that it replaces if one of those has a later one."""
    own, migration = _last(loader, key, memory), loader.disk_migrations.get(key)
    replaced = [step for part in (migration.replaces if migration else ()) for step in _latest(loader, part, memory)]
    return replaced if any(step and (own is None or step.pk > own.pk) for step in replaced) else [own]


def _last(loader: MigrationLoader, key: Key, memory: dict[Key, Any]) -> Any:
    """Return the last step of the migration or of a squash that replaces it; None if none is known."""
    known = (memory.get(each) for each in (key, *whole(loader, key))) if memory else ()
    return max(filter(None, known), key=lambda step: step.pk, default=None)


def parts(loader: MigrationLoader, migration: Migration) -> Iterator[Key]:
    """Yield what the migration replaces, and what that replaces in turn."""
    for app, name in migration.replaces:
        yield app, name
        if part := loader.disk_migrations.get((app, name)):
            yield from parts(loader, part)


def whole(loader: MigrationLoader, key: Key) -> Iterator[Key]:
    """Yield the squashes that replace the migration, also by way of others."""
    for squash, migration in loader.disk_migrations.items():
        if migration.replaces and key in parts(loader, migration):
            yield squash


def recorded_together(loader: MigrationLoader, migration: Migration, *, applied: bool) -> list[Key]:
    """Return the migrations whose records change with that of this one: it, and those that it replaces.

    If a part of a squash is taken back, the squash is no longer applied. Stock Django leaves its record.
    """
    key = (migration.app_label, migration.name)
    return list(dict.fromkeys([*parts(loader, migration), key, *(() if applied else whole(loader, key))]))


def named(loader: MigrationLoader) -> set[Key]:
    """Return the migrations with files, those that they replace, and the applied ones."""
    files = loader.disk_migrations
    replaced = ((app, name) for migration in files.values() for app, name in migration.replaces)
    return {*files, *loader.applied_migrations, *replaced}
