"""When does a migration run: before the code that needs it ships, or after the code that used what it takes away?"""

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
from django.db.models import NOT_PROVIDED

from .conf import conf
from .exceptions import ImpossibleStage
from .postgres.statements import Statement, only_adds, split

Plan = list[tuple[Migration, bool]]
Key = tuple[str, str]
"""The app and the name of a migration."""

TAKING_AWAY = (
    operations.DeleteModel,
    operations.RenameModel,
    operations.AlterModelTable,
    operations.AddConstraint,
)
# What takes all values of what, beside itself.
WIDER = {("IntegerField", "PositiveIntegerField"), ("ForeignKey", "OneToOneField")}
# Outlines of statements, and of actions of ALTER TABLE, that code which knows nothing of them does not mind.
SAFE = re.compile(r"UPDATE\b|DROP INDEX\b|ALTER INDEX\b|ALTER TYPE \S+ ADD VALUE\b")
SAFE_ACTION = re.compile(
    r"ADD (?!(?:CONSTRAINT|UNIQUE|CHECK|EXCLUDE|PRIMARY|FOREIGN)\b)(?!.*\bPRIMARY KEY\b)"
    r"(?:(?!.*\bNOT NULL\b)|.*\b(?:DEFAULT|GENERATED)\b)"
    r"|(?:DROP|VALIDATE|RENAME) CONSTRAINT\b|(?:RE)?SET \("
    r"|ALTER (?:COLUMN )?\S+ (?:DROP (?:DEFAULT|NOT NULL)\b|SET (?:DEFAULT|STATISTICS|STORAGE)\b)"
)
# What adds something that old code may run into.
STRICT = re.compile(r"CREATE (?:UNIQUE|TRIGGER|CONSTRAINT|RULE|POLICY)\b")


class Stage(StrEnum):
    """Set as ``stage`` on a migration: expand before the deploy, contract after it."""

    PRE_DEPLOY = "pre_deploy"
    POST_DEPLOY = "post_deploy"


def key_of(migration: Migration) -> Key:
    """Return what the graph and django_migrations call the migration."""
    return migration.app_label, migration.name


def said_stage(migration: Migration) -> Stage | None:
    """Return the stage that the migration says, or that the setting gives to all which say none.

    Raises:
        ImpossibleStage: if what it or the setting says is no stage.
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
            f"{where} {stage!r}. Write 'pre_deploy' or 'post_deploy' in its place, or leave it out."
        ) from None


def stages_of(plan: Plan, graph: MigrationGraph, there: Collection[str]) -> dict[Key, Stage]:
    """Return when each migration of a plan may run: as it says, as the setting says, or as its operations imply.

    What takes away something that the code names is POST_DEPLOY, and so is SQL of which it cannot be told that it does
    not. No code names what the plan makes itself.

    Args:
        there: the names of the tables that the database has.
    """
    known, stages = Known(plan, graph, there), dict[Key, Stage]()
    for migration, _ in plan:
        takes_away = [known.loses(migration, number) for number in range(len(migration.operations))]
        implied = Stage.POST_DEPLOY if any(takes_away) else Stage.PRE_DEPLOY
        stages[key_of(migration)] = said_stage(migration) or implied
    return stages


class Known:
    """What may running code know? All but the tables and columns that a plan makes, and the apps that it begins."""

    def __init__(self, plan: Plan, graph: MigrationGraph, there: Collection[str]) -> None:
        self.graph, self.there = graph, there
        self.new: set[tuple[str, ...]] = set()
        for migration, backwards in plan:
            app, node = migration.app_label, graph.node_map.get(key_of(migration))
            made = [one for one in _on_database(migration.operations) if isinstance(one, operations.CreateModel)]
            if node and not backwards and not any(parent.key[0] == app for parent in node.parents):
                self.new |= set() if any(map(self._is_there, [app] * len(made), made)) else {(app,)}

    def loses(self, migration: Migration, number: int) -> bool:
        """Whether that operation of the migration, counted from 0, takes away something that running code knows."""
        found = [self._loses(one, migration, number) for one in _on_database(migration.operations[number : number + 1])]
        return any(found)

    def _loses(self, one: Any, migration: Migration, number: int) -> bool:
        app = migration.app_label
        if isinstance(one, operations.RunSQL):
            return (app,) not in self.new and not all(map(_is_safe, _statements(one)))
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
        return (made.options.get("db_table") or truncate_name(f"{app}_{made.name_lower}", 63)) in self.there

    def _field(self, migration: Migration, number: int, model: str, name: str) -> Any:
        """Return the field as the last operation before that one defined it; None if none is found."""
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
        """Yield what the app's operations before that one do to its models, newest first."""
        yield from reversed(list(_on_models(migration.operations[:number])))
        key = key_of(migration)
        for app, name in reversed(self.graph.forwards_plan(key)[:-1] if key in self.graph.nodes else []):
            if app == migration.app_label:
                known: Any = self.graph.nodes[app, name]
                yield from reversed(list(_on_models(known.operations)))


def _has_default(field: Any) -> bool:
    """Whether the database fills the column where an INSERT does not name it."""
    generated = getattr(field, "generated", False) or field.get_internal_type().endswith("AutoField")
    return generated or getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED


def _is_narrower(new: Any, old: Any) -> bool:
    """Whether the new type may not take every value of the old one."""
    (to, widths), (of, before) = _type(new), _type(old)
    return (to, of) not in {(of, of), *WIDER} or any(width < old for width, old in zip(widths, before, strict=True))


def _type(field: Any) -> tuple[str, tuple[float, ...]]:
    """Return what a field's type has in common with those that differ only in how much they take, and how much."""
    name = field.get_internal_type()
    if name == "DecimalField":
        return name, (field.max_digits - field.decimal_places, field.decimal_places)
    for end in ("AutoField", "IntegerField"):
        if name.endswith(end):
            return name.replace("Small", "").replace("Big", ""), (-("Small" in name) + ("Big" in name),)
    is_text = name in {"CharField", "TextField", "SlugField", "FileField", "FilePathField"}
    return "text" if is_text else name, ((name != "TextField" and field.max_length) or math.inf,)


def _is_stricter(one: operations.AlterField, old: Any) -> bool:
    """Whether old code may write what the field no longer takes, or names a column that it no longer has."""
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
    """Whether it can be told that code goes on as before: what it names stays, and what it writes is taken."""
    if actions := one.actions:
        return all(SAFE_ACTION.match(action.outline) for action in actions)
    return not one.verb or bool(SAFE.match(one.outline)) or (only_adds(one.text) and not STRICT.match(one.outline))


def _statements(one: operations.RunSQL) -> Iterator[Statement]:
    for sql in [one.sql] if isinstance(one.sql, str) else one.sql:
        yield from split(sql if isinstance(sql, str) else sql[0])


def _on_database(some: Iterable[Operation]) -> Iterator[Operation]:
    for one in some:
        inner = getattr(one, "database_operations", None)
        yield from [one] if inner is None else _on_database(inner)


def _on_models(some: Iterable[Operation]) -> Iterator[Operation]:
    for one in some:
        inner = getattr(one, "state_operations", [])
        yield from _on_models(inner) if inner or hasattr(one, "database_operations") else [one]


def before_deploy(plan: Plan, graph: MigrationGraph, stages: dict[Key, Stage]) -> tuple[Plan, list[str]]:
    """Split off the steps that may run before the deploy: those of PRE_DEPLOY that need no step of POST_DEPLOY.

    Args:
        plan: unapplied migrations, each after those it depends on.
        stages: of each of them.

    Returns:
        Those steps, and for each PRE_DEPLOY step that must wait, the chain that holds it back:
        ``tasks.3 needs tasks.2 needs tasks.1``.
    """
    contract = {key for key, stage in stages.items() if stage == Stage.POST_DEPLOY}
    expand = [(step, _chain(key_of(step[0]), contract, graph)) for step in plan if key_of(step[0]) not in contract]
    return [step for step, chain in expand if not chain], [chain for _, chain in expand if chain]


def _chain(key: Key, targets: Collection[Key], graph: MigrationGraph) -> str:
    """Say the shortest way from ``key`` to one of ``targets`` that it needs; nothing if it needs none."""
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
