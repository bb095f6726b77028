"""E3xx: does a migration run at all, can it be undone, and may it run again after it was killed halfway?"""

import dis
import re
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.apps.registry import Apps
from django.db.migrations import RunPython, SeparateDatabaseAndState
from django.db.migrations.operations.special import RunSQL
from django.db.models.base import ModelBase

from ...exceptions import UnknownBackfill
from ..differences import differences
from ..facts import Catalog, Change, Constraint, Table, Trace, changes
from ..registry import Spot, rule
from .examples import NOT_ATOMIC, PAID, SEQUENCE, operations

INDEX_NAME = re.compile(r" INDEX (\S+) ON (ONLY )?")


@rule(
    "E301",
    "The migration fails",
    condition="It raises an error in the scratch database, where all migrations before it have run.",
    effect="It does not run: {error}",
    instead="""
Correct it. It runs on tables without rows here, so it fails everywhere: python manage.py sqlmigrate {app} {migration}
shows what it sends.
""",
    bad=operations(
        'migrations.RunSQL("ALTER TABLE shop_oder ADD COLUMN paid boolean", "ALTER TABLE shop_oder DROP COLUMN paid")'
    ),
    good=PAID,
)
def fails(trace: Trace) -> Iterator[Spot]:
    failure = trace.up.failure
    if failure and not failure.environment and not trace.because_of:
        yield Spot(trace.up, failure.operation, values={"error": failure.message})


@rule(
    "E310",
    "Code fails on the first row",
    condition="RunPython names what is not there, or calls what a historical model has not, once its tables have rows.",
    effect="It runs on empty tables, and fails where there is a row: {error}",
    instead="""
A model from apps.get_model has the fields of its time and Django's own methods, and none of the methods, properties
and managers of the class in models.py (but managers with use_in_migrations = True). Write what the method does into
the migration.
""",
    bad="""
def fill(apps, schema_editor):
    for order in apps.get_model("shop", "Order").objects.using(schema_editor.connection.alias)[:100]:
        order.close()

operations = [
    migrations.RunPython(fill, migrations.RunPython.noop),
]
""",
    good="""
def fill(apps, schema_editor):
    for order in apps.get_model("shop", "Order").objects.using(schema_editor.connection.alias)[:100]:
        order.full_clean()

operations = [
    migrations.RunPython(fill, migrations.RunPython.noop),
]
""",
)
def fails_on_rows(trace: Trace) -> Iterator[Spot]:
    for passed in trace.passes:
        for failure in passed.stumbles:
            yield Spot(passed, failure.operation, values={"error": failure.message})


@rule(
    "E302",
    "The migration cannot be undone",
    condition="It has RunPython without reverse_code, RunSQL without reverse_sql, or another irreversible operation.",
    effect="{operation} has no way back, so neither this migration nor any before it can be rolled back.",
    instead="""
Give RunPython a reverse_code and RunSQL a reverse_sql. Where nothing needs to be undone:

migrations.RunPython(forwards, migrations.RunPython.noop)
migrations.RunSQL("…", migrations.RunSQL.noop)
""",
    bad=operations('migrations.RunSQL("CREATE SEQUENCE IF NOT EXISTS order_numbers")'),
    good=SEQUENCE,
)
def irreversible(trace: Trace) -> Iterator[Spot]:
    for number, operation in trace.operations:
        with suppress(UnknownBackfill):  # for which the migration fails
            if not operation.reversible:
                yield Spot(trace.up, number, values={"operation": type(operation).__name__})


@rule(
    "E303",
    "The way back fails",
    condition="It goes up, but raises an error when it is undone right afterwards.",
    effect="A rollback stops here: {error}",
    instead="""
Correct the reverse of the operation, and try it: python manage.py migrate {app} <the one before>
""",
    bad=operations('migrations.RunSQL("CREATE SEQUENCE IF NOT EXISTS order_numbers", "DROP SEQUENCE order_number")'),
    good=SEQUENCE,
)
def way_back_fails(trace: Trace) -> Iterator[Spot]:
    if trace.down and (failure := trace.down.failure) and not failure.environment and not trace.because_of:
        yield Spot(trace.down, failure.operation, values={"error": failure.message})


@rule(
    "E304",
    "The way back leads elsewhere",
    condition="Up and down again, and the catalog of a table is not what it was.",
    effect="After a rollback {what}, and the migration may not be able to go up again.",
    instead="""
Let the reverse take back all that the operation makes, under the same names.
""",
    bad=operations(
        'migrations.RunSQL("ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS paid boolean", migrations.RunSQL.noop)'
    ),
    good=PAID,
)
def leads_elsewhere(trace: Trace) -> Iterator[Spot]:
    if not trace.down or trace.down.failure:
        return
    left = {oid: table for oid, table in trace.up.after.items() if oid not in trace.down.before}
    left |= trace.down.after
    for change in changes(_nameless(trace.up.before), _nameless(left)):
        if isinstance(change.after, Constraint) and change.before and change.after.valid:
            continue  # a constraint that was not valid is so now: that does not want to be undone
        where = change.table if change.kind == "table" else f"{change.name} of {change.table}"
        what = f"{change.kind} {where} is {_became(change)}"
        yield Spot(trace.down, None, table=change.table, values={"what": what})


def _nameless(catalog: Catalog) -> dict[str, Table]:
    """Call each constraint and index by what it does, for PostgreSQL or Django may choose another name for it."""
    return {
        table.name: table._replace(
            constraints={
                key: constraint._replace(name=key, definition=key)
                for constraint in table.constraints.values()
                for key in [constraint.definition.removesuffix(" NOT VALID")]
            },
            indexes={
                key: index._replace(name=key, definition=key)
                for index in table.indexes.values()
                for key in [INDEX_NAME.sub(" INDEX ON ", index.definition, count=1)]
            },
        )
        for table in catalog.values()
    }


def _became(change: Change) -> str:
    if change.after is None:
        return "missing"
    return "still there" if change.before is None else "another one"


@rule(
    "E305",
    "A migration that is not atomic cannot be run twice",
    condition="In a migration with atomic = False, raw SQL fails when it is run a second time.",
    effect="If it is killed halfway, what it has done stays, and it cannot be run again: {error}",
    instead="""
Let each statement do nothing where its work is done: CREATE … IF NOT EXISTS, DROP … IF EXISTS,
ADD COLUMN IF NOT EXISTS, CREATE OR REPLACE; for a constraint, in one statement:

ALTER TABLE … DROP CONSTRAINT IF EXISTS name, ADD CONSTRAINT name … NOT VALID
""",
    bad=NOT_ATOMIC
    + operations('migrations.RunSQL("CREATE SEQUENCE order_numbers", "DROP SEQUENCE IF EXISTS order_numbers")'),
    good=NOT_ATOMIC + SEQUENCE,
)
def cannot_run_twice(trace: Trace) -> Iterator[Spot]:
    for number, error in trace.reruns.items():
        yield Spot(trace.up, number, values={"error": error})


@rule(
    "E306",
    "The models say something else than the database",
    condition="After raw SQL or SeparateDatabaseAndState, a table's columns, indexes or constraints are not as the "
    "migration's state says.",
    effect="The migration tells Django one thing and PostgreSQL another: {what}.",
    instead="""
Let state_operations say exactly what the SQL does: the same table, column, type, NULL, index and constraint names.
""",
    bad="""
operations = [
    migrations.RunSQL(
        "ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS paid integer",
        "ALTER TABLE shop_order DROP COLUMN IF EXISTS paid",
        state_operations=[migrations.AddField("order", "paid", models.BooleanField(null=True, db_index=True))],
    ),
]
""",
    good="""
operations = [
    migrations.RunSQL(
        "ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS paid boolean",
        "ALTER TABLE shop_order DROP COLUMN IF EXISTS paid",
        state_operations=[migrations.AddField("order", "paid", models.BooleanField(null=True))],
    ),
]
""",
)
def halves_disagree(trace: Trace) -> Iterator[Spot]:
    raw = [one for one in trace.migration.operations if isinstance(one, RunSQL | SeparateDatabaseAndState)]
    if trace.up.failure or not raw:
        return
    says_all = any(one.state_operations for one in raw)
    tables, tables_before = trace.tables, {table.name: table for table in trace.up.before.values()}
    changed = {change.table for change in trace.up.changes}
    for name in sorted(trace.written.changed_since(trace.code_before) | (changed & trace.written.keys())):
        if (model := trace.written[name])._meta.managed:
            earlier, old = trace.code_before.get(name), tables_before.get(name, tables.get(name))
            known = set(differences(earlier, old, trace.alias)) if earlier else set()
            for what in differences(model, tables.get(name), trace.alias, both_ways=says_all):
                if what not in known:
                    yield Spot(trace.up, table=name, values={"what": what})
    for table, what in trace.otherwise:
        yield Spot(trace.up, table=table, values={"what": what})


@rule(
    "E307",
    "RunPython uses a model as it is today",
    condition="The function of a RunPython imports a model or asks django.apps for it, not the apps that it is given.",
    effect="{function} uses {models} from the code as it is today, not as it was when the migration was written: once "
    "a field is added or removed there, this migration fails on every new database.",
    instead="""
def {function}(apps, schema_editor):
    model = apps.get_model("{label}")  # as it was at this point of the history
""",
    bad="""
from django.contrib.contenttypes.models import ContentType

def clean(apps, schema_editor):
    ContentType.objects.filter(app_label="gone").delete()

operations = [
    migrations.RunPython(clean, migrations.RunPython.noop),
]
""",
    good="""
def clean(apps, schema_editor):
    orders = apps.get_model("shop", "Order").objects.using(schema_editor.connection.alias)
    orders.filter(pk=0).delete()

operations = [
    migrations.RunPython(clean, migrations.RunPython.noop),
]
""",
)
def real_model(trace: Trace) -> Iterator[Spot]:
    for number, operation in trace.operations:
        if isinstance(operation, RunPython):
            for function in (operation.code, operation.reverse_code):
                if found := sorted(set(_todays(function, set()))):
                    values = {"function": getattr(function, "__name__", "it"), "label": found[0]}
                    yield Spot(trace.up, number, values={**values, "models": ", ".join(found)})


def _todays(function: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the models of the project that a function uses, itself or through functions and classes of its module."""
    if isinstance(function, type):
        for one in vars(function).values():
            yield from _todays(one, seen)
    if not isinstance(function, types.FunctionType) or function in seen:
        return
    seen.add(function)
    for value in _named(function.__code__, function.__globals__):
        if isinstance(value, ModelBase) and hasattr(value, "_meta") and value._meta.apps is apps:
            yield value._meta.label
        elif value == apps.get_model:
            yield "app.Model"
        elif getattr(value, "__module__", None) == function.__module__:
            yield from _todays(value, seen)


def _named(code: types.CodeType, known: dict[str, Any]) -> Iterator[Any]:
    """Yield the objects that code names, also as attributes of modules, or imports.

    Args:
        known: the globals of the code's module.
    """
    module, value = "", None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname == "IMPORT_NAME":
            module = name
        elif instruction.opname == "IMPORT_FROM":
            value = getattr(sys.modules.get(module), name, None)
        elif instruction.opname == "LOAD_GLOBAL":
            value = known.get(name)
        elif instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"} and isinstance(value, types.ModuleType | Apps):
            value = getattr(value, name, None)
        elif instruction.opname not in {"CACHE", "EXTENDED_ARG", "PRECALL", "PUSH_NULL"}:
            value = None
        yield value
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _named(inner, known)


@rule(
    "E308",
    "The migration ends its own transaction",
    condition="In an atomic migration, a statement contains COMMIT or ROLLBACK.",
    effect="Django believes to be in a transaction that has ended: if the migration fails later on, what it did before "
    "stays: {statement}",
    instead="""
Leave BEGIN and COMMIT out. If the statements shall not be one transaction, write atomic = False.
""",
    bad="""
operations = [
    migrations.RunSQL("CREATE SEQUENCE IF NOT EXISTS order_numbers; COMMIT", "DROP SEQUENCE IF EXISTS order_numbers"),
]
""",
    good=SEQUENCE,
)
def ends_transaction(trace: Trace) -> Iterator[Spot]:
    for passed in trace.passes:
        for statement in passed.statements:
            if statement.ends_transaction:
                yield Spot(passed, None, statement)


@rule(
    "E309",
    "Two migrations are both the last of their app",
    condition="An app has several leaves: two branches were merged.",
    effect="migrate refuses to run, because it cannot know which of {leaves} comes first.",
    instead="""
Let one depend on the other, or: python manage.py makemigrations --merge {app}
""",
)
def two_leaves(trace: Trace) -> Iterator[Spot]:
    if trace.leaves:
        yield Spot(None, values={"leaves": " and ".join(trace.leaves)})
