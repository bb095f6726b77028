"""What is the name of a new migration?

Django's autodetector finds the changes; this module names them ``YYYYMMDDHHmmss_description``. The timestamp is in
UTC, and later than that of every other migration in any app and of its dependencies. So the files sorted by name are in
an order in which they can be applied. The description names the changed tables, columns and indexes. No file is written
here.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from graphlib import TopologicalSorter
from typing import Any

from django.conf import settings
from django.db.migrations import Migration, autodetector, operations
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.models import ModelOptionOperation
from django.db.migrations.questioner import MigrationQuestioner
from django.db.migrations.state import ProjectState
from django.utils.text import camel_case_to_spaces, slugify

from ..operations import FillField, RequireBackfill
from ..stages import Key, Stage, key_of
from .pieces import split

LONGEST_DESCRIPTION = 60
CREATE, DELETE = "create_{}_table[s]", "delete_{}_table[s]"
SECOND = timedelta(seconds=1)


class MigrationAutodetector(autodetector.MigrationAutodetector):
    """Django's autodetector, with names of a timestamp and a description."""

    rewrites = False
    """Whether to split the migrations into safe pieces."""

    def __init__(
        self, from_state: ProjectState, to_state: ProjectState, questioner: MigrationQuestioner | None = None
    ) -> None:
        super().__init__(from_state, to_state, questioner)
        self._state_before = from_state.clone()  # the detection removes options from from_state

    @staticmethod
    def now() -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)

    def arrange_for_graph(
        self, changes: dict[str, list[Migration]], graph: MigrationGraph, migration_name: str | None = None
    ) -> dict[str, list[Migration]]:
        """Connect changes to the graph as Django does, then split and rename them."""
        changes = super().arrange_for_graph(changes, graph, migration_name)
        if self.rewrites and any(migration.operations for some in changes.values() for migration in some):
            split(changes, self._state_before, list(_in_order(changes, graph)))
        rename(changes, graph, self._state_before, self.now(), migration_name)
        return changes


@cache
def extending(found: type[autodetector.MigrationAutodetector]) -> type[autodetector.MigrationAutodetector]:
    """Return the project's autodetector class with the engine's names.

    It is cached: Django checks that ``migrate`` and ``makemigrations`` have the same class.
    """
    if issubclass(MigrationAutodetector, found):
        return MigrationAutodetector
    ours = (MigrationAutodetector, found)
    return found if issubclass(found, MigrationAutodetector) else type(found.__name__, ours, {})


def timestamps(graph: MigrationGraph, now: datetime) -> Iterator[str]:
    """Yield timestamps a second apart, all later than those in the graph, even if these are in the future."""
    moment = now
    for key, migration in graph.nodes.items():
        replaced = migration.replaces if migration else []  # the graph hides their files
        for _, name in (key, *replaced):
            for digits in re.findall(r"(?:^|_squashed_)([0-9]{14})", name):
                with suppress(ValueError, OverflowError):
                    moment = max(moment, datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC) + SECOND)
    while True:
        yield f"{moment:%Y%m%d%H%M%S}"
        moment += SECOND


def rename(
    changes: dict[str, list[Migration]],
    graph: MigrationGraph,
    state: ProjectState,
    now: datetime,
    name: str | None = None,
) -> None:
    """Name new migrations by a timestamp and ``name``, or by what they do to ``state``, which changes with them."""
    stamps = timestamps(graph, now)
    renamed: dict[Key, Key] = {}
    backfills: dict[str, str] = {}
    for migration in _in_order(changes, graph):
        dependencies = [renamed.get(parent, parent) for parent in migration.dependencies]
        migration.dependencies = dependencies  # type: ignore[misc]
        old_key = key_of(migration)
        described = describe(migration, state)
        migration.name = f"{next(stamps)}_{name + _part(migration, changes) if name else described}"
        renamed[old_key] = key_of(migration)
        _name_backfills(migration, backfills)


def _name_backfills(migration: Migration, names: dict[str, str]) -> None:
    """Name what fills a field after its migration; let what requires it name it so."""
    named = list(migration.operations)
    for number, one in enumerate(named):
        if isinstance(one, FillField):
            names[one.name] = ".".join(key_of(migration))
            named[number] = one.named(names[one.name])
        elif isinstance(one, RequireBackfill):
            one.name = names.get(one.name, one.name)
    migration.operations = named  # type: ignore[misc]


def _part(migration: Any, changes: dict[str, list[Migration]]) -> str:
    """Return the end of a given name: pieces after the deploy complete what those before it begin."""
    if any(isinstance(one, FillField) for one in migration.operations):
        return "_fill"
    stages = {getattr(one, "stage", None) for one in changes[migration.app_label]}
    is_last = getattr(migration, "stage", None) == Stage.POST_DEPLOY and Stage.PRE_DEPLOY in stages
    return "_complete" if is_last else ""


def _in_order(changes: dict[str, list[Migration]], graph: MigrationGraph) -> Iterator[Migration]:
    """Yield every new migration after its dependencies."""
    new = {key_of(migration): migration for migrations in changes.values() for migration in migrations}
    unmigrated = (app_label for app_label in changes if changes[app_label] and not graph.leaf_nodes(app_label))
    firsts = {(app_label, "__first__"): (app_label, changes[app_label][0].name) for app_label in unmigrated}

    def parents(migration: Migration) -> Iterator[Key]:
        for app_label, name in migration.dependencies:
            if app_label == "__setting__":  # a swappable model: the first migration of its app
                app_label, name = getattr(settings, name).split(".")[0], "__first__"
            parent = firsts.get((app_label, name), (app_label, name))
            if parent in new:
                yield parent

    order = TopologicalSorter({key: sorted(parents(migration)) for key, migration in sorted(new.items())})
    return (new[key] for key in order.static_order())


def describe(migration: Migration, state: ProjectState) -> str:
    """Describe a migration, such as ``add_bio_and_location_to_users``; bring ``state`` forward."""
    said = list(_say(migration.operations, migration.app_label, state))
    added = {(f"alter_{{}}_on_{table}", word) for table, sentence, word in said if sentence == f"add_{{}}_to_{table}"}
    said = [one for one in said if one[1:] not in added]  # a new column gets its index, say
    whole = {table for table, sentence, _ in said if sentence in (CREATE, DELETE)}  # described without its parts
    words_by_sentence: dict[str, list[str]] = {}
    for table, sentence, word in said:
        if table not in whole or sentence in (CREATE, DELETE):
            words_by_sentence.setdefault(sentence, []).append(word)
    room = LONGEST_DESCRIPTION - (len("_and_99_more") if len(words_by_sentence) > 1 else 0)
    return _fill("{}", [_fill(sentence, words, room) for sentence, words in words_by_sentence.items()]) or "custom"


def describe_merge(names: Iterable[str]) -> str:
    """Describe a merge of the named migrations, without their numbers."""
    return _fill("merge_{}", [re.sub(r"^[0-9]+_?|[0-9]{14}_?", "", name) for name in names])


def _fill(sentence: str, words: list[str], room: int = LONGEST_DESCRIPTION) -> str:
    """Fill the sentence's gap with words; count the words that do not fit. Keep a plural ``[s]`` for several."""
    sentence = re.sub(r"\[(\w+)\]", r"\1" if len(words) > 1 else "", sentence)
    words = list(dict.fromkeys(words))
    name = ""
    for shown in range(len(words), 0, -1):
        more = [f"{len(words) - shown}_more"] if shown < len(words) else []
        name = _slug(sentence.format("_and_".join(words[:shown] + more)))
        if len(name) <= room:
            break
    return name[:room].rstrip("_")


def _slug(text: str) -> str:
    return slugify(re.sub(r"[\W_]+", " ", text)).replace("-", "_")


def _say(steps: Iterable[Operation], app_label: str, state: ProjectState) -> Iterator[tuple[str, str, str]]:
    """Yield of each operation its table, a sentence with a gap and the word for it; bring ``state`` forward."""
    for step in steps:
        if isinstance(step, FillField):
            model, field, _ = step.filled
            yield (model, f"fill_{{}}_of_{_table(state, *model.split('.'))}", field)
        elif isinstance(step, RequireBackfill):
            pass
        elif inner := getattr(step, "state_operations", None):
            yield from _say(inner, app_label, state)
        elif inner := getattr(step, "database_operations", None):
            yield from _say(inner, app_label, state.clone())
        else:
            name = getattr(step, "model_name", getattr(step, "name", ""))
            old = _table(state, app_label, name)
            step.state_forwards(app_label, state)
            new = _table(state, app_label, step.new_name if isinstance(step, operations.RenameModel) else name)
            kind = next(kind for kind in type(step).__mro__ if kind in SENTENCES) if old or new else Operation
            yield (new or old, *SENTENCES[kind](step, old, new))


def _table(state: ProjectState, app_label: str, model_name: str) -> str:
    """Return the name of the model's table; an empty text for a model without one."""
    model = state.models.get((app_label, model_name.lower()))
    if model is None or model.options.get("proxy") or not model.options.get("managed", True):
        return ""
    return _slug(model.options.get("db_table") or f"{app_label}_{model_name}")


def _plain(operation: Operation) -> str:
    """Return Django's words for an operation, or the name of the Python function that it runs."""
    function = getattr(operation, "code", None)
    return operation.migration_name_fragment or getattr(function, "__name__", _kind(operation))


def _kind(instance: object) -> str:
    return camel_case_to_spaces(type(instance).__name__)


def _index(name: str) -> str:
    return re.sub(r"^idx_|_idx$", "", name)


# For each operation a sentence with a gap, and the word for the gap, from the table's name before and after it.
# Operations with the same sentence share it: add_bio_and_location_to_users. One without a table keeps Django's words.
SENTENCES: dict[type[Operation], Callable[[Any, str, str], tuple[str, str]]] = {
    Operation: lambda op, old, new: ("{}", _plain(op)),
    operations.CreateModel: lambda op, old, new: (CREATE, new),
    operations.DeleteModel: lambda op, old, new: (DELETE, old),
    operations.RenameModel: lambda op, old, new: (
        ("rename_table[s]_{}", f"{old}_to_{new}")
        if old != new
        else ("rename_model[s]_{}", f"{op.old_name}_to_{op.new_name}")
    ),
    operations.AlterModelTable: lambda op, old, new: ("rename_table[s]_{}", f"{old}_to_{new}"),
    ModelOptionOperation: lambda op, old, new: (f"alter_{{}}_on_{new}", re.sub("alter (model )?", "", _kind(op))),
    operations.AddField: lambda op, old, new: (f"add_{{}}_to_{new}", op.name),
    operations.RemoveField: lambda op, old, new: (f"remove_{{}}_from_{new}", op.name),
    operations.AlterField: lambda op, old, new: (f"alter_{{}}_on_{new}", op.name),
    operations.RenameField: lambda op, old, new: (f"rename_{{}}_on_{new}", f"{op.old_name}_to_{op.new_name}"),
    operations.AddIndex: lambda op, old, new: ("add_index[es]_{}", _index(op.index.name)),
    operations.RemoveIndex: lambda op, old, new: ("remove_index[es]_{}", _index(op.name)),
    operations.RenameIndex: lambda op, old, new: (
        "rename_index[es]_{}",
        f"{_index(op.old_name or '_'.join(op.old_fields))}_to_{_index(op.new_name)}",
    ),
    operations.AddConstraint: lambda op, old, new: (f"add_{_kind(op.constraint)}[s]_{{}}", new),
    operations.RemoveConstraint: lambda op, old, new: ("remove_constraint[s]_{}", op.name),
    operations.AlterConstraint: lambda op, old, new: ("alter_constraint[s]_{}", op.name),
}
