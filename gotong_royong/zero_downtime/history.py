"""What does the ledger remember of the migrations that are applied, and do django_migrations and the files agree?

Rows of django_migrations get lost, files get edited after they were applied. The ledger may know nothing of a
migration, or of any; then there is nothing to tell. A lost one is taken for applied only if the tables look just as
they do after it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime import ledger
from gotong_royong.zero_downtime.exceptions import DefinitionDiffers
from gotong_royong.zero_downtime.models import Step, latest_steps
from gotong_royong.zero_downtime.schema import twice_is_once
from gotong_royong.zero_downtime.stages import Key, key_of

NAMED = 5  # edited migrations, before the sentence only counts them


def applied_by(alias: str, loader: MigrationLoader, *columns: str) -> dict[Migration, Any]:
    """Return the applied migrations of the graph that the ledger knows, with these columns of the steps that did it.

    A migration whose last step went down, though Django says that it is applied, was applied by somebody else.
    """
    steps = latest_steps(alias, *columns)
    return {
        migration: steps[key]
        for key, migration in loader.graph.nodes.items()
        if key in loader.applied_migrations and key in steps and steps[key].direction == Step.Direction.UP
    }


def remembered(alias: str) -> dict[Key, Any]:
    """Return the last step of each migration that the ledger says is applied, with its checksum."""
    steps = latest_steps(alias, "checksum")
    return {key: step for key, step in steps.items() if step.direction == Step.Direction.UP}


def edited(loader: MigrationLoader, memory: dict[Key, Any]) -> list[Migration]:
    """Return the applied migrations whose files are not what they were when they were applied, in the order of names.

    One look into each file. A file that is gone is not an edited one.
    """
    applied = (
        (loader.graph.nodes[key], memory[key])
        for key in memory.keys() & loader.graph.nodes.keys()
        if key in loader.applied_migrations
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


def forgotten(executor: MigrationExecutor, memory: dict[Key, Any]) -> list[Migration]:
    """Return the migrations that the ledger says are applied, django_migrations does not, and the tables confirm.

    They confirm it for an app as a whole: all its tables must look as its models do after the last of its migrations
    that the ledger or django_migrations knows. Takes for moments ACCESS SHARE on each of them, and SHARE UPDATE
    EXCLUSIVE where a comment is written again; makes temporary tables to compare them with.
    """
    loader = executor.loader
    lost = memory.keys() & loader.graph.nodes.keys() - loader.applied_migrations.keys()
    found = []
    for app in sorted({app for app, _ in lost}):
        known = [key for key in _in_order(loader, app) if key in memory or key in loader.applied_migrations]
        if _tables_are_as_after(executor.connection, loader, known[-1]):
            found += [loader.graph.nodes[key] for key in known if key in lost]
    return found


def applied_before(executor: MigrationExecutor, migration: Migration) -> list[Migration]:
    """Return this migration and those after it in its app that the tables show to be applied, if they do.

    What a migration makes may be there already and differ because later ones changed it. So the tables are compared
    with the models after each later migration, under the locks that ``forgotten`` takes.
    """
    loader, this = executor.loader, key_of(migration)
    keys = _in_order(loader, migration.app_label)
    later = keys[keys.index(this) :] if this in keys else []
    for number, key in enumerate(later):
        if _tables_are_as_after(executor.connection, loader, key):
            return [loader.graph.nodes[key] for key in later[: number + 1]]
    return []


def _in_order(loader: MigrationLoader, app: str) -> list[Key]:
    keys: Iterable[Any] = loader.graph.forwards_plan(loader.graph.leaf_nodes(app)[0])
    return [(label, name) for label, name in keys if label == app]


def _tables_are_as_after(connection: BaseDatabaseWrapper, loader: MigrationLoader, key: Key) -> bool:
    """Whether the tables of the app look as its models do after that migration; False if it has no tables then."""
    models = [
        model
        for model in loader.project_state(key).apps.get_app_config(key[0]).get_models(include_auto_created=True)
        if not model._meta.proxy and model._meta.managed and not model._meta.swapped
    ]
    with connection.cursor() as cursor:
        there = set(connection.introspection.table_names(cursor))
    if not models or not there.issuperset(model._meta.db_table for model in models):
        return False
    with twice_is_once(connection):
        return all(_is_as(connection, model) for model in models if not model._meta.auto_created)


def _is_as(connection: BaseDatabaseWrapper, model: Any) -> bool:
    """Whether the model's table, which is there, is as the model says, and those between it and others."""
    try:
        with connection.schema_editor() as editor:
            editor.create_model(model)  # which is skipped: the tables are there
            editor.deferred_sql.clear()
    except DefinitionDiffers:
        return False
    return True
