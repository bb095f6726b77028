"""Which safe steps does an operation become?

What the same run makes is no user's yet, so operations on it stay as they are. So do operations without a safe form:
the linter says what is wrong with them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

from django.contrib.postgres.functions import RandomUUID
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, operations
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import NOT_PROVIDED, ForeignKey, OneToOneField
from django.db.models.functions import Now
from django.utils import timezone

from ..exceptions import NoWayForNewCode
from ..operations import FillField, RequireBackfill
from ..stages import Known, Stage
from .statements import Safe, Unknown, checked, collected, plain_name, safe, sql_of

PRE, POST = Stage.PRE_DEPLOY, Stage.POST_DEPLOY

BY_STATEMENT = (
    operations.AddIndex,
    operations.RemoveIndex,
    operations.AddConstraint,
    operations.RemoveConstraint,
    operations.AlterField,
    operations.AlterUniqueTogether,
    operations.AlterIndexTogether,
)


class Step(NamedTuple):
    """An operation and its stage.

    Args:
        alone: whether each of its statements must commit alone.
        data: whether it changes rows.
        in_state_only: whether it changes nothing in the database.
    """

    operation: Operation
    stage: Stage
    alone: bool = False
    data: bool = False
    in_state_only: bool = False


class _Known(Known):
    """What running code knows in one state of the models."""

    def __init__(self, state: ProjectState) -> None:
        super().__init__([], MigrationGraph(), ())
        self.state = state

    def _field(self, migration: Migration, number: int, model: str, name: str) -> Any:
        found = self.state.models.get((migration.app_label, model))
        return found.fields.get(name) if found else None


class Rewriter:
    """Turns operations into steps, one after the other.

    Args:
        state: the models before the first operation; it changes with each.
    """

    def __init__(self, state: ProjectState) -> None:
        self.state, self.known = state, _Known(state)

    def steps(self, migration: Migration) -> list[Step]:
        """Return the steps of a migration, and bring the state forward.

        Raises:
            NoWayForNewCode: if new code cannot insert rows while a field that goes is still there.
        """
        found: list[Step] = []
        for number, operation in enumerate(migration.operations):
            loses = self.known.loses(migration, number)
            if isinstance(operation, (operations.AddField, *BY_STATEMENT)):
                _ = self.state.apps  # rendered once: what is cloned from it renders only what changes
            before, self.state = self.state, self.state.clone()
            operation.state_forwards(migration.app_label, self.state)
            self.known.state = self.state
            for step in self._rewrite(operation, migration.app_label, before, POST if loses else PRE):
                waits = step.stage == PRE and any(one.stage == POST and _needs(step, one) for one in found)
                found.append(step._replace(stage=POST) if waits else step)
        return found

    def _rewrite(self, operation: Any, app: str, before: ProjectState, stage: Stage) -> Iterator[Step]:
        model = str(getattr(operation, "model_name", getattr(operation, "name", ""))).lower()
        connection = _connection(app, model)
        if connection is None or {(app,), (app, model)} & self.known.new or _is_nobodys(before, app, model):
            yield Step(operation, PRE if connection is None else stage)
        elif isinstance(operation, operations.AddField):
            yield from self._add_field(connection, operation, app, before, stage)
        elif isinstance(operation, operations.RemoveField):
            yield from self._remove_field(operation, app, before)
        elif isinstance(operation, BY_STATEMENT):
            yield from self._alter(connection, operation, app, before, stage)
        elif isinstance(operation, operations.AlterOrderWithRespectTo) and operation.order_with_respect_to:
            yield from _order(connection, operation, app, before)
        else:
            yield Step(operation, stage)

    def _by_statement(
        self,
        connection: Any,
        operation: Any,
        app: str,
        states: tuple[ProjectState, ProjectState],
        stage: Stage,
        **naming: Any,
    ) -> Step:
        before, after = states
        try:
            up = safe(connection, lambda editor: operation.database_forwards(app, editor, before, after), **naming)
            naming["there"] = [form.made for form in up if form.made]
            down = safe(connection, lambda editor: operation.database_backwards(app, editor, after, before), **naming)
        except (Unknown, Error):  # a database that cannot be reached knows no name either
            return Step(operation, stage)
        if all(form.as_is for form in [*up, *down]):
            stage = POST if any(form.stage == POST for form in up) else PRE
            return Step(operation, stage, in_state_only=not up and not down)
        return _step(up, down, operation)

    def _alter(self, connection: Any, operation: Any, app: str, before: ProjectState, stage: Stage) -> Iterator[Step]:
        """Yield the steps of a change of what exists. A field becomes NOT NULL after its other changes."""
        becomes_not_null = False
        if isinstance(operation, operations.AlterField):
            old: Any = before.models[app, operation.model_name_lower].fields[operation.name_lower]
            field = operation.field
            becomes_not_null = old.null and not field.null and _has_value(field) and not field.is_relation
            if field.null and not old.null and old.has_default() and _differ_only_in_null(field, old):
                yield self._without_default(connection, operation, app, before, (False, True))
                return
        if becomes_not_null:
            between = field.clone()
            between.null = True
            altering, after = operations.AlterField(operation.model_name, operation.name, between), before.clone()
            altering.state_forwards(app, after)
            first = self._by_statement(connection, altering, app, (before, after), POST)
            if filling := self._fill(connection, operation, app, after):
                yield from [*([] if first.in_state_only else [first]), *filling]
                return
        yield self._by_statement(connection, operation, app, (before, self.state), stage)

    def _fill(self, connection: Any, operation: Any, app: str, before: ProjectState) -> list[Step]:
        """Return the steps of a field that only becomes NOT NULL; nothing if it needs other statements."""
        proof = self._without_default(connection, operation, app, before, (True, False))
        if not isinstance(proof.operation, operations.RunSQL):
            return []
        model = before.models[app, operation.model_name_lower]
        name = f"{app}.fill_{model.name_lower}_{operation.name_lower}"
        value = _value(operation.field)
        return [
            Step(FillField(name, f"{app}.{model.name}", operation.name, value), PRE, data=True),
            Step(RequireBackfill(name), POST, alone=True),
            proof,
        ]

    def _without_default(
        self, connection: Any, operation: Any, app: str, before: ProjectState, nulls: tuple[bool, bool]
    ) -> Step:
        """Return the step of a field that may be NULL, or no longer may: Django would write a default into each row."""
        states = [before]
        for null in nulls:
            bare = operation.field.clone()
            bare.default = bare.db_default = NOT_PROVIDED
            bare.null = null
            altering, after = operations.AlterField(operation.model_name, operation.name, bare), states[-1].clone()
            altering.state_forwards(app, after)
            states.append(after)
        step = self._by_statement(connection, altering, app, (states[1], states[2]), POST)
        if isinstance(step.operation, operations.RunSQL):
            step.operation.state_operations = [operation]
            vars(step.operation)["describe"] = operation.describe
        return step

    def _add_field(
        self, connection: Any, operation: Any, app: str, before: ProjectState, stage: Stage
    ) -> Iterator[Step]:
        field = operation.field
        if field.many_to_many or isinstance(field, OneToOneField) or getattr(field, "generated", False):
            yield Step(operation, stage)
            return
        filled = not field.null and field.db_default is NOT_PROVIDED and (_has_value(field) or _may_be_empty(field))
        if filled and (field.unique or isinstance(field, ForeignKey) or field.default is uuid4):
            yield Step(operation, stage)  # each row needs a value of its own
            return
        bare = field.clone()
        if filled:
            bare.db_default = _value(field)
            bare.default = field.default if operation.preserve_default else NOT_PROVIDED
        wanted = bare.clone()
        bare.db_index = False
        bare._unique = False
        between = before.clone()
        adding = operations.AddField(operation.model_name, operation.name, bare)
        adding.state_forwards(app, between)
        yield self._column(connection, adding, app, before, between)
        if (wanted.db_index, wanted.unique) != (bare.db_index, bare.unique):
            altering, after = operations.AlterField(operation.model_name, operation.name, wanted), between.clone()
            altering.state_forwards(app, after)
            names = self._inline_unique(connection, app, operation, after)
            # The column is new: it has nothing that Django would look for, and running code does not know it.
            step = self._by_statement(connection, altering, app, (between, after), PRE, names=names, there=[])
            yield step._replace(stage=PRE)
        if filled:
            last = field.clone()
            last.default = field.default if operation.preserve_default else NOT_PROVIDED
            yield Step(operations.AlterField(operation.model_name, operation.name, last), POST)

    def _column(self, connection: Any, adding: Any, app: str, before: ProjectState, after: ProjectState) -> Step:
        """Return the step that adds a column; its check, if it has one, comes after it."""
        model: Any = after.apps.get_model(app, adding.model_name)
        field = model._meta.get_field(adding.name)
        check = field.db_parameters(connection)["check"]
        if not check:
            return Step(adding, PRE)
        statements = collected(connection, lambda editor: adding.database_forwards(app, editor, before, after))
        inline = f" CHECK ({check})"
        if len(statements) != 1 or statements[0][1].count(inline) != 1:
            return Step(adding, PRE)
        quote = connection.ops.quote_name
        table, column = quote(model._meta.db_table), quote(field.column)
        name = plain_name(model._meta.db_table, field.column, "check")
        sql = statements[0][1].replace(inline, "").replace(" ADD COLUMN ", " ADD COLUMN IF NOT EXISTS ", 1)
        forth = [sql, *checked(table, name, f"CHECK ({check})")]
        back = [
            f"ALTER TABLE {table} DROP {what}"
            for what in (f"CONSTRAINT IF EXISTS {name}", f"COLUMN IF EXISTS {column}")
        ]
        return Step(_sql(forth, back, adding), PRE, alone=True)

    def _inline_unique(self, connection: Any, app: str, operation: Any, after: ProjectState) -> dict[str, str]:
        """Return the name that PostgreSQL gives to the UNIQUE of a new column, by the name that Django would give."""
        model: Any = after.apps.get_model(app, operation.model_name)
        column, quote = model._meta.get_field(operation.name).column, connection.ops.quote_name
        with connection.SchemaEditorClass(connection, collect_sql=True, atomic=False) as editor:
            djangos = editor._create_index_name(model._meta.db_table, [column], suffix="_uniq")
        return {quote(djangos): plain_name(model._meta.db_table, column, "key")}

    def _remove_field(self, operation: Any, app: str, before: ProjectState) -> Iterator[Step]:
        field: Any = before.models[app, operation.model_name_lower].fields[operation.name_lower]
        needs_value = not (field.null or field.many_to_many or field.primary_key or getattr(field, "generated", False))
        if needs_value and field.db_default is NOT_PROVIDED:
            has_value = _has_value(field) or _may_be_empty(field)
            if not has_value or field.is_relation or (field.unique and field.default is not uuid4):
                raise NoWayForNewCode(f"{app}.{operation.model_name}.{operation.name}")
            kept = field.clone()
            kept.db_default = _value(field)
            yield Step(operations.AlterField(operation.model_name, operation.name, kept), PRE)
        yield Step(operation, POST)


def _order(connection: Any, operation: Any, app: str, before: ProjectState) -> list[Step]:
    """Return the steps of a new order: its column keeps the default until the deploy is over."""
    table = connection.ops.quote_name(before.apps.get_model(app, operation.name)._meta.db_table)
    forth = f'ALTER TABLE {table} ADD COLUMN IF NOT EXISTS "_order" integer NOT NULL DEFAULT 0'
    add = _sql([forth], [f'ALTER TABLE {table} DROP COLUMN IF EXISTS "_order"'], operation)
    default = f'ALTER TABLE {table} ALTER COLUMN "_order"'
    return [Step(add, PRE), Step(operations.RunSQL(f"{default} DROP DEFAULT", f"{default} SET DEFAULT 0"), POST)]


def _step(up: list[Safe], down: list[Safe], operation: Operation) -> Step:
    stage = POST if any(form.stage == POST for form in up) else PRE
    forth, back = sql_of(up), sql_of(down)
    alone = max(len(forth), len(back)) > 1 or any("CONCURRENTLY" in one for one in [*forth, *back])
    return Step(_sql(forth, back, operation), stage, alone)


def _sql(forth: list[Any], back: list[Any], operation: Operation) -> operations.RunSQL:
    """Return the SQL in place of an operation, with that one's description, to be written a statement a line."""
    made = operations.RunSQL(sql=forth, reverse_sql=back, state_operations=[operation])
    vars(made).update(describe=operation.describe, serialization_expand_args=["sql", "reverse_sql", "state_operations"])
    return made


def _connection(app: str, model: str) -> BaseDatabaseWrapper | None:
    """Return a database that has the model's table; None if one of those is not PostgreSQL."""
    found = [connections[alias] for alias in connections if router.allow_migrate(alias, app, model_name=model or None)]
    return found[0] if found and all(connection.vendor == "postgresql" for connection in found) else None


def _is_nobodys(state: ProjectState, app: str, model: str) -> bool:
    """Whether the model has no table that Django manages."""
    found = state.models.get((app, model))
    return found is not None and (not found.options.get("managed", True) or bool(found.options.get("proxy")))


def _value(field: Any) -> Any:
    """Return the default of a field, as an expression where PostgreSQL can tell each row's own."""
    if field.default is NOT_PROVIDED and field.db_default is not NOT_PROVIDED:
        return field.db_default
    if field.default is uuid4:
        return RandomUUID()
    is_now = field.default is timezone.now or (field.default is NOT_PROVIDED and _is_timed(field))
    return Now() if is_now else field.get_default()


def _has_value(field: Any) -> bool:
    return field.has_default() or field.db_default is not NOT_PROVIDED or _is_timed(field)


def _may_be_empty(field: Any) -> bool:
    """Whether Django gives the empty text to rows without a value."""
    return bool(field.blank and field.empty_strings_allowed)


def _differ_only_in_null(field: Any, other: Any) -> bool:
    fields = [one.clone() for one in (field, other)]
    for one in fields:
        one.null, one.default = True, NOT_PROVIDED
    (_, *one), (_, *two) = (each.deconstruct() for each in fields)
    return bool(one == two)


def _is_timed(field: Any) -> bool:
    return bool(getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False))


def _needs(step: Step, earlier: Step) -> bool:
    """Whether a step may only come after an earlier one: that one makes, takes or renames what the step concerns."""
    (model, names), (other, others) = _concerns(step.operation), _concerns(earlier.operation)
    one = _inner(earlier.operation)
    if isinstance(one, operations.RenameModel | operations.AlterModelTable | operations.DeleteModel):
        return model == other
    if isinstance(one, operations.AlterField | operations.AlterUniqueTogether):
        return False
    part = getattr(one, "index", getattr(one, "constraint", None))
    made = {part.name.lower()} if part is not None else others
    return model == other and bool(names & made)


def _inner(operation: Any) -> Any:
    return next(iter(getattr(operation, "state_operations", None) or [operation]))


def _concerns(operation: Any) -> tuple[str, set[str]]:
    """Return the model, and the names of fields, indexes and constraints, in small letters."""
    one = _inner(operation)
    part = getattr(one, "index", getattr(one, "constraint", None))
    if part is not None:
        names = [part.name, *getattr(part, "fields", ())]
    elif isinstance(one, operations.AlterUniqueTogether):
        names = [field for fields in one.option_value or () for field in fields]
    elif isinstance(one, operations.AlterOrderWithRespectTo):
        names = ["_order"]
    else:
        names = [getattr(one, "name", ""), getattr(one, "old_name", ""), getattr(one, "new_name", "")]
    model = getattr(one, "model_name", None) or getattr(one, "new_name", None) or getattr(one, "name", "")
    return str(model).lower(), {str(name).lower() for name in names if name}
