"""Do django_migrations, the files and the ledger agree, and is a migration half done?

Rows of django_migrations get lost, files are edited after they were applied, processes are killed. A migration without
a row is run, unless the ledger knows that it is applied.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import CreateModel, RunPython, RunSQL

from ..exceptions import HalfDone, HistoryLost, NotUndoable
from ..models import Run, Status, Step
from ..postgres import locks
from ..postgres.journal import Past
from ..stages import Key, Plan, key_of, on_database, table_of
from . import history, undo
from .loader import Loader, checksum

if TYPE_CHECKING:
    from .executor import Executor

DATA = RunPython, RunSQL
NAMED = 5  # edited migrations that the warning names before it counts the rest


def recall(executor: "Executor") -> None:
    """Report edited files and half taken back migrations; record again what the ledger knows to be applied.

    Writes rows of django_migrations; the caller holds the runner's lock.
    """

    def note(text: str) -> None:
        executor.report("note", text=text)

    loader: Any = executor.loader
    memory = history.remembered(executor.alias, loader)
    if changed := edited(loader, memory):
        note(warning(changed))
    for key, half in halves(executor).items():
        if key in loader.applied_migrations:
            note(f"{'.'.join(key)} is {half}.")
    again = lost(executor.connection, loader, memory)
    for migration in again:
        executor.record(migration)
        note(f"django_migrations has lost {migration}, which the ledger knows to be applied: recorded again, not run.")
    for (app, name), (squash_app, squash) in loader.lost.items():
        executor.recorder.record_applied(app, name)
        squash = f"{squash_app}.{squash}"
        note(f"django_migrations has lost {app}.{name}, which the applied {squash} replaces: recorded again.")
    for app, name in sorted(set(loader.vouched.values())):
        executor.recorder.record_applied(app, name)
    if again or loader.lost:
        loader.build_graph()


def halves(executor: "Executor") -> dict[Key, str]:
    """Return the migrations that a finished run left half done or half taken back, and how far they are, in words."""
    alias, nodes, applied = executor.connection.alias, executor.loader.graph.nodes, executor.loader.applied_migrations
    other, said = at_work(executor), dict[Key, str]()
    under_way = set(other.steps.filter(status=Status.RUNNING).values_list("app", "name")) if other else set()
    for key in history.failed(alias) - under_way:
        past, run = executor.past(*key), history.steps_since_reset(alias, key).values_list("run", flat=True).last()
        if key in applied and past.taken_back:
            said[key] = f"half taken back by run {run}, which failed: rollback takes back the rest"
        elif key not in applied and undo.is_half_done(nodes.get(key), past):
            said[key] = (
                f"half done by run {run}, which failed{_way_out(executor.loader.disk_migrations.get(key), past, run)}"
            )
    return said


def _way_out(migration: Migration | None, past: Past, run: int | None) -> str:
    if migration is None:
        forget = f"rollback --run {run} --accept-edited"
        return f", and its file is gone: restore it from version control and roll back, or forget it: {forget}"
    if undo.first_edited(migration, past):
        return ", and its file was edited since: put what was done back into it, then migrate or roll back"
    ended = [number for number, told in past.items() if told.ended]
    where = f"after operation {max(ended)}" if ended else "at its first operation"
    try:
        undo.refuse_irreversible(migration, past)
    except NotUndoable:
        return f": migrate goes on {where}; rollback cannot take it back, because it has no reverse"
    return f": migrate goes on {where}, rollback takes it back"


def with_halves(executor: "Executor", plan: Plan, targets: Collection[Any], plan_of: Callable[..., Plan]) -> Plan:
    """Return a plan down that also has the half done migrations that depend on its migrations.

    Args:
        plan: Django's plan, which has only applied migrations.
        targets: of Django's plan.
        plan_of: returns Django's plan for targets.
    """
    loader = executor.loader
    if set(targets) <= set(loader.graph.leaf_nodes()) or not all(backwards for _, backwards in plan):
        return plan
    half = halves(executor).keys() & loader.graph.nodes.keys() - loader.applied_migrations.keys() - set(targets)
    if not half:
        return plan
    before = loader.applied_migrations
    try:
        loader.applied_migrations = {**before, **{key: loader.graph.nodes[key] for key in half}}
        found = plan_of(targets)
    finally:
        loader.applied_migrations = before
    return found if all(backwards for _, backwards in found) else plan


def refuse_half_taken_back(executor: "Executor", plan: Plan) -> None:
    """Check that no migration is half taken back, except those that the plan takes back.

    Raises:
        HalfDone: names one that is.
    """
    back = {key_of(migration) for migration, backwards in plan if backwards}
    for key, half in halves(executor).items():
        if key in executor.loader.applied_migrations.keys() - back:
            raise HalfDone(f"{'.'.join(key)} is {half}. Nothing was changed. Run rollback, then migrate.")


def refuse_half_done(executor: "Executor", plan: Plan) -> None:
    """Check that no migration of a plan that only records is half done: the record would hide that.

    Raises:
        HalfDone: names one that is.
    """
    for key in halves(executor).keys() & {key_of(migration) for migration, _ in plan}:
        raise HalfDone(
            f"{'.'.join(key)} is {halves(executor)[key]}. --fake would hide that half. Nothing was changed. Let "
            "migrate go on or rollback take it back, and remove from its file what you did by hand."
        )


def at_work(executor: "Executor") -> Run | None:
    """Return another command's run that is at work on the database now."""
    connection = executor.connection
    if executor.alias or Run not in history.tables(connection.alias) or not locks.holders(connection, locks.RUNNER):
        return None
    return Run.objects.using(connection.alias).filter(status=Status.RUNNING).last()


def edited(loader: MigrationLoader, memory: dict[Key, Any]) -> list[Migration]:
    """Return the applied migrations whose files have changed since, sorted by name. A missing file is not edited."""
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
    """Return a warning that names the edited migrations and says what to do."""
    names = ", ".join(map(str, edited[:NAMED]))
    more = f" and {len(edited) - NAMED} more" if len(edited) > NAMED else ""
    return (
        f"Edited since they were applied here: {names}{more}. This database has what the files said then: "
        "restore them from version control, and write the change into a new migration (makemigrations)."
    )


def lost(connection: BaseDatabaseWrapper, loader: Loader, memory: dict[Key, Any]) -> list[Migration]:
    """Return the migrations that django_migrations has lost and that the ledger knows to be applied.

    The ledger knows a migration if its last successful step went up, with the file as it is now; and a squash if it
    knows all that the squash replaces. It does not count if a table of the app's models is missing: then somebody took
    something back without the ledger.
    """
    nodes, applied = loader.graph.nodes, loader.applied_migrations
    found = [key for key in nodes if key not in applied and _is_witnessed(loader, nodes[key], memory)]
    gone = {app for app in {app for app, _ in found} if _tables_missing(connection, loader, app, {*found, *applied})}
    return [nodes[key] for key in found if key[0] not in gone]


def all_lost(executor: "Executor") -> list[Key]:
    """Return what ``recall`` would record again, in the order of names."""
    loader = executor.loader
    migrations = lost(executor.connection, loader, history.remembered(executor.connection.alias, loader))
    return sorted({*map(key_of, migrations), *loader.lost})


def refuse_unwitnessed(connection: BaseDatabaseWrapper, loader: Loader, plan: Plan) -> None:
    """Check that no app without records, but with tables, is migrated from its beginning, if that may change data.

    Raises:
        HistoryLost: names the table, and the migration that would change data again.
    """
    recorded = {app for app, _ in loader.applied_migrations}
    fresh = [migration for migration, backwards in plan if not backwards and migration.app_label not in recorded]
    data = {
        one.app_label: one
        for one in reversed(fresh)
        if any(isinstance(each, DATA) for each in on_database(one.operations))
    }
    there = set(connection.introspection.table_names()) if data else set()
    for migration in fresh if data else ():
        app = migration.app_label
        for operation in on_database(migration.operations):
            if app not in data or not isinstance(operation, CreateModel):
                continue
            table = table_of(app, operation)
            is_made = operation.options.get("managed", True) and not operation.options.get("proxy")
            if is_made and table in there and not _knows(connection.alias, app):
                raise HistoryLost(migration, table, data[app], app)


def _knows(alias: str, app: str) -> bool:
    return Step in history.tables(alias) and Step.objects.using(alias).filter(app=app).exists()


def _is_witnessed(loader: Loader, migration: Migration, memory: dict[Key, Any]) -> bool:
    steps = history.vouching(loader, key_of(migration), memory)
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
