"""Which migrations does a rollback take back, and can it?

Nothing here changes the database; the executor carries the plan out. A rollback never takes the ledger back: `migrate
zero_downtime zero` drops that.
"""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from django.apps import apps
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from ..apps import APP
from ..exceptions import NotUndoable
from ..models import Run, Step
from ..stages import Key, Plan, key_of
from . import history, recall, undo
from .loader import checksum

if TYPE_CHECKING:
    from .executor import Executor


class Applied(NamedTuple):
    """An applied migration, and the ledger's steps that applied it.

    A squash whose parts were applied one by one has several; a migration from before the ledger has none.
    """

    key: Key
    steps: tuple[Any, ...]
    is_half: bool = False
    """Whether a run failed in it and left a part of it."""

    def __str__(self) -> str:
        return ".".join(self.key)

    @property
    def runs(self) -> list[int]:
        """The runs that applied it, in their order."""
        return sorted({step.run for step in self.steps})

    @property
    def is_faked(self) -> bool:
        """Whether it was only recorded, so that there is nothing else to take back."""
        return bool(self.steps) and all(step.faked for step in self.steps)


def applied(executor: "Executor") -> list[Applied]:
    """Return the applied migrations, without the ledger's own, the last applied first.

    The ledger tells the order; migrations from before the ledger are the earliest, in the order of django_migrations.
    A squash stands for what it replaces. Migrations that only the ledger knows, and those without a file, are included.
    """
    loader: Any = executor.loader
    nodes, memory = loader.graph.nodes, history.remembered(executor.connection.alias, loader)
    recorded = {key: row.pk for key, row in MigrationRecorder(executor.connection).applied_migrations().items()}
    lost = {key_of(migration) for migration in recall.lost(executor.connection, loader, memory)}
    loader.applied_migrations |= {key: nodes[key] for key in lost}
    found = {key for key in loader.applied_migrations if key[0] != APP}
    half = half_done(executor, found)
    covered = {part for key in found & nodes.keys() for part in history.parts(loader, nodes[key])}
    places: dict[Applied, tuple[int, int]] = {}
    for key in found - covered:
        migration = nodes.get(key) or Migration(key[1], key[0])
        steps = tuple(history.vouching(loader, key, memory))
        rows = [recorded[part] for part in history.parts(loader, migration) if part in recorded]
        places[Applied(key, steps)] = (
            max((step.pk for step in steps), default=0),
            max(rows, default=recorded.get(key, 0)),
        )
    places |= {one: (max(step.pk for step in one.steps), 0) for one in half}
    return sorted(places, key=lambda one: (places[one], one.key), reverse=True)


def half_done(executor: "Executor", applied: Collection[Key]) -> list[Applied]:
    """Return the unapplied migrations that a failed run left half done."""
    alias, columns = executor.connection.alias, ("app", "name", "direction", "pk", "run", "checksum", "faked")
    return [
        Applied(key, tuple(history.steps_since_reset(alias, key).values_list(*columns, named=True)), is_half=True)
        for key in recall.halves(executor).keys() - set(applied)
    ]


def batch(executor: "Executor", done: list[Applied], run_id: int | None = None) -> list[Applied]:
    """Choose the migrations of one run that are still applied: of the run with that id, else of the last run.

    Raises:
        NotUndoable: if there is no such run, nothing of it is still applied, or it applied only a part of a squash.
    """
    runs = Run.objects.using(executor.connection.alias)
    if run_id is not None and not (history.tables(runs.db) and runs.filter(pk=run_id).exists()):
        raise NotUndoable(f"There is no run {run_id}. See showmigrations for the runs that applied something.")
    if run_id is None and not done[0].runs:
        raise NotUndoable(f"The ledger knows no run that applied {done[0]}, the last migration. Use --steps N.")
    wanted = done[0].runs[-1] if run_id is None else run_id
    chosen = [one for one in done if wanted in one.runs]
    for one in chosen:
        if one.runs != [wanted] and not one.is_half:
            raise NotUndoable(
                f"{one} replaces what several runs applied ({', '.join(map(str, one.runs))}), and cannot be taken back "
                "for one of them. Nothing was changed. Use --steps N."
            )
    if not chosen:
        raise NotUndoable(f"Nothing that run {run_id} applied is still applied. See showmigrations for other runs.")
    return chosen


def with_halves(executor: "Executor", done: list[Applied], chosen: list[Applied]) -> list[Applied]:
    """Return these, and the half done migrations that depend on them, which go first."""
    graph = executor.loader.graph
    needing = {other for one in chosen if one.key in graph.nodes for other in graph.backwards_plan(one.key)}
    return [one for one in done if one in chosen or (one.is_half and one.key in needing)]


def last_steps(done: list[Applied], count: int) -> list[Applied]:
    """Choose the ``count`` migrations that were applied last.

    Raises:
        NotUndoable: if there are fewer.
    """
    if not 0 < count <= len(done):
        raise NotUndoable(f"Cannot take back {count} steps: {len(done)} are applied.")
    return done[:count]


def later_than(executor: "Executor", done: list[Applied], timestamp: str) -> list[Applied]:
    """Choose the applied migrations of any app with a later timestamp, and those that depend on them.

    Raises:
        NotUndoable: if no migration has that timestamp.
    """
    graph = executor.loader.graph
    keys = graph.nodes.keys() | {one.key for one in done}
    stamps = {key: match[0] for key in keys if (match := re.match(r"[0-9]{14}", key[1]))}
    if timestamp not in stamps.values():
        raise NotUndoable(
            f"No migration has the timestamp {timestamp}. Write the 14 digits that a migration's "
            "name begins with, as in rollback --to 20260210120000; showmigrations lists them."
        )
    later = {key for key, stamp in stamps.items() if stamp > timestamp}
    needing = {other for key in later & graph.nodes.keys() for other in graph.backwards_plan(key)}
    return [one for one in done if one.key in later | needing]


def refuse_unknown(
    executor: "Executor", done: list[Applied], chosen: list[Applied], *, accept_edited: bool = False
) -> None:
    """Check that the chosen migrations, and all that were applied after the first of them, have their files.

    Nobody knows what a migration without a file changed, perhaps a table that the rollback drops.

    Args:
        done: all applied migrations, the last one first.
        chosen: those to take back.
        accept_edited: whether to take back edited ones by their files of now, and to forget half done ones without.

    Raises:
        NotUndoable: names the migration whose file is gone or was edited since, and what to do.
    """
    nodes = executor.loader.graph.nodes
    for one in done[: max(map(done.index, chosen), default=0)]:
        if one not in chosen and one.key not in nodes:
            raise NotUndoable(_without_file(one, "was applied after what the rollback takes back"))
    for one in chosen:
        if one.key not in nodes and one.is_half and accept_edited:
            executor.loader.graph.add_node(one.key, _empty(*one.key))
        if one.key not in nodes:
            raise NotUndoable(_without_file(one, "is among what the rollback takes back"))
        if len({step.faked for step in one.steps}) > 1:
            faked = ", ".join(f"{step.app}.{step.name}" for step in one.steps if step.faked)
            raise NotUndoable(
                f"{one} cannot be taken back: of what it replaces, {faked} was only recorded, and the rest was run. "
                f"Nothing was changed. Restore the files that it replaces, remove its own, and roll back again."
            )
        for step in one.steps:
            if (step.app, step.name) != one.key or step.faked or accept_edited:
                continue
            if one.is_half:
                undo.refuse_edited(nodes[one.key], executor.past(*one.key))
            elif recall.is_edited(nodes[one.key], step):
                raise NotUndoable(
                    f"{one} is not taken back: its file has been edited since run {step.run} applied it.\n"
                    f"  applied: SHA-256 {step.checksum}\n  now:     SHA-256 {checksum(nodes[one.key])}\n"
                    "Nothing was changed. Restore the file from version control, or accept the file as it is now: "
                    "rollback --accept-edited."
                )


def _empty(app: str, name: str) -> Migration:
    """Return a migration that does nothing, in place of one without a file."""
    migration = Migration(name, app)
    migration.__module__ = ""
    return migration


def _without_file(one: Applied, why: str) -> str:
    app, name = one.key
    by = f"which run {one.runs[-1]} applied" if one.runs else "which was applied before the ledger existed"
    said = f"{one}, {by}, {why}, and its file is gone. Nothing was changed. "
    if app not in apps.app_configs:
        return f"{said}No installed app has the label {app}: install it again."
    module, _ = MigrationLoader.migrations_module(app)
    path = f"{(module or app).replace('.', '/')}/{name}.py"
    return f"{said}Restore {path} from version control (git log --diff-filter=D -- '*/{name}.py' finds it). " + (
        f"If it does not come back, forget it: rollback --run {one.runs[-1]} --accept-edited."
        if one.is_half
        else f"If another file has taken its place, forget it: migrate {app} --prune."
    )


def plan_of(executor: "Executor", chosen: set[Key], faked: Collection[Key] = ()) -> Plan:
    """Return the plan down, newest first.

    Args:
        faked: the migrations that were only recorded.

    Raises:
        NotUndoable: names the applied migration that needs one of these, or the operation that has no way back.
    """
    graph, applied = executor.loader.graph, executor.loader.applied_migrations
    for key in sorted(chosen - applied.keys()):
        for needed in graph.forwards_plan(key):
            if needed not in applied and needed not in chosen:
                raise NotUndoable(
                    f"{'.'.join(key)} is half done, and cannot be taken back while {'.'.join(needed)}, which it needs, "
                    f"is not applied. Nothing was changed. Apply that first: migrate {' '.join(needed)}."
                )
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
        if key_of(migration) not in faked:
            undo.refuse_irreversible(migration, executor.past(*key_of(migration)))
    return plan


def difference(alias: str, before: list[Applied], after: list[Applied]) -> str:
    """Return who changed what is applied: ``run 7 (rollback) by maria@host took back shop.0003_index``."""
    changed = {one.key for one in set(before) ^ set(after)}
    by_run: dict[tuple[int, str], list[str]] = {}
    for key, step in sorted(history.latest_steps(alias, changed, "run").items()):
        by_run.setdefault((step.run, step.direction), []).append(".".join(key))
    runs = Run.objects.using(alias).in_bulk([run for run, _ in by_run])
    did = {Step.Direction.UP: "applied", Step.Direction.DOWN: "took back"}
    said = [
        f"{runs[run]} by {runs[run].who} {did[Step.Direction(way)]} {', '.join(names)}"
        for (run, way), names in sorted(by_run.items())
    ]
    return "; ".join(said) or "what is applied has changed"
