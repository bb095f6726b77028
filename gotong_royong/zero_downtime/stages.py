"""Does a migration run before the deploy of its code, or after it?"""

import math
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from typing import Any

from django.db.backends.utils import truncate_name
from django.db.migrations import Migration, operations
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState
from django.db.models import NOT_PROVIDED

from .conf import conf
from .exceptions import ImpossibleStage
from .postgres.statements import Statement, of_raw_sql, only_adds

Plan = list[tuple[Migration, bool]]
Key = tuple[str, str]
"""The app and the name of a migration."""

TAKING_AWAY = (
    operations.DeleteModel,
    operations.RenameModel,
    operations.AlterModelTable,
    operations.AddConstraint,
)
# The first type takes every value of the second.
WIDER = {("IntegerField", "PositiveIntegerField"), ("ForeignKey", "OneToOneField")}
# Outlines of statements, and of actions of ALTER TABLE, after which old code still works.
SAFE = re.compile(r"UPDATE\b|DROP INDEX\b|ALTER INDEX\b|ALTER TYPE \S+ ADD VALUE\b")
SAFE_ACTION = re.compile(
    r"ADD (?!(?:CONSTRAINT|UNIQUE|CHECK|EXCLUDE|PRIMARY|FOREIGN)\b)(?!.*\bPRIMARY KEY\b)"
    r"(?:(?!.*\bNOT NULL\b)|.*\b(?:DEFAULT|GENERATED)\b)"
    r"|(?:DROP|VALIDATE|RENAME) CONSTRAINT\b|(?:RE)?SET \("
    r"|ALTER (?:COLUMN )?\S+ (?:DROP (?:DEFAULT|NOT NULL)\b|SET (?:DEFAULT|STATISTICS|STORAGE)\b)"
)
# Statements that add something on which old code may fail.
STRICT = re.compile(r"CREATE (?:UNIQUE|TRIGGER|CONSTRAINT|RULE|POLICY)\b")


class Stage(StrEnum):
    """The ``stage`` of a migration: expand before the deploy, contract after it."""

    PRE_DEPLOY = "pre_deploy"
    POST_DEPLOY = "post_deploy"


def key_of(migration: Migration) -> Key:
    """Return the key of the migration in the graph and in django_migrations."""
    return migration.app_label, migration.name


def said_stage(migration: Migration) -> Stage | None:
    """Return the migration's ``stage``, or else ZERO_DOWNTIME_DEFAULT_STAGE.

    Raises:
        ImpossibleStage: if that is not a stage.
    """
    said = getattr(migration, "stage", None)
    stage: Any = conf.DEFAULT_STAGE if said is None else said
    if stage is None:
        return None
    try:
        return Stage(stage)
    except ValueError:
        where = "ZERO_DOWNTIME_DEFAULT_STAGE is" if said is None else f"{migration} has stage"
        raise ImpossibleStage(
            f"{where} {stage!r}. Write 'pre_deploy' or 'post_deploy' instead, or remove it."
        ) from None


def stages_of(plan: Plan, graph: MigrationGraph, there: Collection[str]) -> dict[Key, Stage]:
    """Return the stage of each migration of a plan: its own, the setting's, or the one that its operations imply.

    A migration that takes away something that running code names is POST_DEPLOY; so is one with SQL that may do so.
    Running code names nothing that the plan itself makes.

    Args:
        there: the names of the tables in the database.

    Raises:
        ImpossibleStage: if a migration or the setting names a stage that does not exist.
    """
    known, stages = Known(plan, graph, there), dict[Key, Stage]()
    for migration, _ in plan:
        takes_away = [known.loses(migration, number) for number in range(len(migration.operations))]
        implied = Stage.POST_DEPLOY if any(takes_away) else Stage.PRE_DEPLOY
        stages[key_of(migration)] = said_stage(migration) or implied
    return stages


class Known:
    """What may running code know? Everything but the new tables, columns and apps of the plan."""

    def __init__(self, plan: Plan, graph: MigrationGraph, there: Collection[str]) -> None:
        self.graph, self.there = graph, there
        self.new: set[tuple[str, ...]] = set()
        for migration, backwards in plan:
            app, node = migration.app_label, graph.node_map.get(key_of(migration))
            made = [one for one in on_database(migration.operations) if isinstance(one, operations.CreateModel)]
            if node and not backwards and not any(parent.key[0] == app for parent in node.parents):
                self.new |= set() if any(map(self._is_there, [app] * len(made), made)) else {(app,)}

    def loses(self, migration: Migration, number: int) -> bool:
        """Whether an operation of the migration, counted from 0, takes away something that running code knows."""
        found = [self._loses(one, migration, number) for one in on_database(migration.operations[number : number + 1])]
        return any(found)

    def _loses(self, one: Any, migration: Migration, number: int) -> bool:
        app = migration.app_label
        if isinstance(one, operations.RunSQL):
            return (app,) not in self.new and not all(map(_is_safe, of_raw_sql(one.sql)))
        model = str(getattr(one, "model_name", getattr(one, "old_name", getattr(one, "name", "")))).lower()
        if isinstance(one, operations.CreateModel):
            self.new |= set() if self._is_there(app, one) else {(app, model)}
        elif (app, model) in self.new:
            self.new |= {(app, one.new_name_lower)} if isinstance(one, operations.RenameModel) else set()
        elif isinstance(one, operations.AddField):
            self.new.add((app, model, one.name_lower))
            return not (one.field.many_to_many or one.field.null or _has_default(one.field))
        elif isinstance(one, operations.RenameField):
            if (app, model, one.old_name_lower) not in self.new:
                old = self._field(migration, number, model, one.old_name_lower)
                return old is None or not old.db_column
            self.new.add((app, model, one.new_name_lower))
        elif isinstance(one, operations.RemoveField):
            return (app, model, one.name_lower) not in self.new
        elif isinstance(one, operations.AlterField):
            return _is_stricter(one, self._field(migration, number, model, one.name_lower))
        elif isinstance(one, operations.AlterUniqueTogether):
            return bool(one.option_value)
        elif isinstance(one, operations.AlterOrderWithRespectTo):
            return one.order_with_respect_to is None
        else:
            return isinstance(one, TAKING_AWAY)
        return False

    def _is_there(self, app: str, made: operations.CreateModel) -> bool:
        return table_of(app, made) in self.there

    def _field(self, migration: Migration, number: int, model: str, name: str) -> Any:
        """Return the field as the last operation before that one defined it, or None."""
        for one in self._before(migration, number):
            if isinstance(one, operations.RenameModel) and one.new_name_lower == model:
                model = one.old_name_lower
            elif isinstance(one, operations.CreateModel) and one.name_lower == model:
                return {field.lower(): definition for field, definition in one.fields}.get(name)
            elif getattr(one, "model_name_lower", None) != model:
                continue
            elif isinstance(one, operations.RenameField) and one.new_name_lower == name:
                name = one.old_name_lower
            elif isinstance(one, operations.AddField | operations.AlterField) and one.name_lower == name:
                return one.field
        return None

    def _before(self, migration: Migration, number: int) -> Iterator[Operation]:
        """Yield the app's operations on its models before that one, newest first."""
        yield from reversed(list(_on_models(migration.operations[:number])))
        key = key_of(migration)
        for app, name in reversed(self.graph.forwards_plan(key)[:-1] if key in self.graph.nodes else []):
            if app == migration.app_label:
                known: Any = self.graph.nodes[app, name]
                yield from reversed(list(_on_models(known.operations)))


def table_of(app: str, model: operations.CreateModel | ModelState) -> str:
    """Return the name of the model's table, without quotes."""
    return model.options.get("db_table") or truncate_name(f"{app}_{model.name_lower}", 63)


def _has_default(field: Any) -> bool:
    """Whether the database fills the column when an INSERT does not name it."""
    generated = getattr(field, "generated", False) or field.get_internal_type().endswith("AutoField")
    return generated or getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED


def _is_narrower(new: Any, old: Any) -> bool:
    """Whether the new type may not take every value of the old one."""
    (to, widths), (of, before) = _type(new), _type(old)
    return (to, of) not in {(of, of), *WIDER} or any(width < old for width, old in zip(widths, before, strict=True))


def _type(field: Any) -> tuple[str, tuple[float, ...]]:
    """Return the family of a field's type, and its size within the family."""
    name = field.get_internal_type()
    if name == "DecimalField":
        return name, (field.max_digits - field.decimal_places, field.decimal_places)
    for end in ("AutoField", "IntegerField"):
        if name.endswith(end):
            return name.replace("Small", "").replace("Big", ""), (-("Small" in name) + ("Big" in name),)
    is_text = name in {"CharField", "TextField", "SlugField", "FileField", "FilePathField"}
    return "text" if is_text else name, ((name != "TextField" and field.max_length) or math.inf,)


def _is_stricter(one: operations.AlterField, old: Any) -> bool:
    """Whether old code may write a value that the field no longer takes, or names its old column."""
    new: Any = one.field
    return (
        old is None
        or (new.unique and not old.unique)
        or (old.null and not new.null)
        or (_has_default(old) and not new.null and not _has_default(new))
        or _is_narrower(new, old)
        or (new.db_column or one.name) != (old.db_column or one.name)
    )


def _is_safe(one: Statement) -> bool:
    """Whether old code surely still works: what it names stays, and the database takes what it writes."""
    if actions := one.actions:
        return all(SAFE_ACTION.match(action.outline) for action in actions)
    return not one.verb or bool(SAFE.match(one.outline)) or (only_adds(one.text) and not STRICT.match(one.outline))


def on_database(some: Iterable[Operation]) -> Iterator[Operation]:
    """Yield the operations, with the ``database_operations`` in place of the operations that have some."""
    for one in some:
        inner = getattr(one, "database_operations", None)
        yield from [one] if inner is None else on_database(inner)


def _on_models(some: Iterable[Operation]) -> Iterator[Operation]:
    for one in some:
        inner = getattr(one, "state_operations", [])
        yield from _on_models(inner) if inner or hasattr(one, "database_operations") else [one]


def before_deploy(plan: Plan, graph: MigrationGraph, stages: dict[Key, Stage]) -> tuple[Plan, list[str]]:
    """Return the PRE_DEPLOY steps that need no POST_DEPLOY step.

    Args:
        plan: unapplied migrations, each after its dependencies.
        stages: the stage of each migration.

    Returns:
        Those steps, and for each other PRE_DEPLOY step the chain that holds it back:
        ``tasks.3 needs tasks.2 needs tasks.1``.
    """
    contract = {key for key, stage in stages.items() if stage == Stage.POST_DEPLOY}
    expand = [(step, _chain(key_of(step[0]), contract, graph)) for step in plan if key_of(step[0]) not in contract]
    return [step for step, chain in expand if not chain], [chain for _, chain in expand if chain]


def _chain(key: Key, targets: Collection[Key], graph: MigrationGraph) -> str:
    """Return the shortest chain from ``key`` to one of ``targets`` that it needs, in words; empty if it needs none."""
    ways, seen = deque([[key]]), {key}
    while ways:
        way = ways.popleft()
        for parent in sorted(node.key for node in graph.node_map[way[-1]].parents):
            if parent in targets:
                return " needs ".join(".".join(step) for step in [*way, parent])
            if parent not in seen:
                seen.add(parent)
                ways.append([*way, parent])
    return ""
