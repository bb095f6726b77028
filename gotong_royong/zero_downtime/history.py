"""What does the ledger remember of the migrations that are applied, and do django_migrations and the files agree?

Rows of django_migrations get lost, files get edited after they were applied. The ledger may know nothing of a
migration, or of any; then there is nothing to tell, and what is not recorded as applied is run.
"""

from collections.abc import Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime import ledger
from gotong_royong.zero_downtime.loader import Loader
from gotong_royong.zero_downtime.models import Step, latest_steps
from gotong_royong.zero_downtime.stages import Key, key_of

NAMED = 5  # edited migrations, before the sentence only counts them


def applied_by(alias: str, loader: MigrationLoader, *columns: str) -> dict[Migration, Any]:
    """Return the applied migrations of the graph that the ledger knows, with these columns of the steps that did it.

    A migration whose last step went down, though Django says that it is applied, was applied by somebody else.
    """
    steps = latest_steps(alias, loader.graph.nodes.keys(), *columns)
    return {
        migration: steps[key]
        for key, migration in loader.graph.nodes.items()
        if key in loader.applied_migrations and key in steps and steps[key].direction == Step.Direction.UP
    }


def remembered(alias: str, loader: MigrationLoader) -> dict[Key, Any]:
    """Return the last step, up or down, of each migration of the graph and of each that these replace."""
    return latest_steps(alias, named(loader), "pk", "run", "checksum", "faked")


def vouching(migration: Migration, memory: dict[Key, Any]) -> list[Any]:
    """Return the steps that applied the migration: its own, or of a squash those of all that it replaces.

    None if one of them is not known, or was taken back since.
    """
    own = memory.get(key_of(migration))
    replaced = [memory.get((app, name)) for app, name in migration.replaces]
    later = [step for step in replaced if step and (own is None or step.pk > own.pk)]
    steps = replaced if later else [own]
    return steps if all(step and step.direction == Step.Direction.UP for step in steps) else []


def named(loader: MigrationLoader) -> set[Key]:
    """Return the migrations of the graph, what they replace, and what is applied, whether it has files or not."""
    nodes = loader.graph.nodes
    replaced = ((app, name) for migration in nodes.values() for app, name in migration.replaces)
    return {*nodes, *loader.applied_migrations, *replaced}


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
    return bool(step.checksum) and ledger.checksum(migration) not in {"", step.checksum}


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


def _is_witnessed(loader: Loader, migration: Migration, memory: dict[Key, Any]) -> bool:
    steps = vouching(migration, memory)
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
