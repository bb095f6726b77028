"""E3xx: does a migration run, can it be undone, and can it run again after it was killed halfway?"""

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

INDEX_NAME = re.compile(r" INDEX (\S+) ON (ONLY )?")


@rule("E301")
def fails(trace: Trace) -> Iterator[Spot]:
    failure = trace.up.failure
    if failure and not failure.environment and not trace.because_of:
        yield Spot(trace.up, failure.operation, values={"error": failure.message})


@rule("E310")
def fails_on_rows(trace: Trace) -> Iterator[Spot]:
    for passed in trace.passes:
        for failure in passed.stumbles:
            yield Spot(passed, failure.operation, values={"error": failure.message})


@rule("E302")
def irreversible(trace: Trace) -> Iterator[Spot]:
    for number, operation in trace.operations:
        with suppress(UnknownBackfill):  # the migration fails because of it
            if not operation.reversible:
                yield Spot(trace.up, number, values={"operation": type(operation).__name__})


@rule("E303")
def way_back_fails(trace: Trace) -> Iterator[Spot]:
    if trace.down and (failure := trace.down.failure) and not failure.environment and not trace.because_of:
        yield Spot(trace.down, failure.operation, values={"error": failure.message})


@rule("E304")
def leads_elsewhere(trace: Trace) -> Iterator[Spot]:
    if not trace.down or trace.down.failure:
        return
    left = {oid: table for oid, table in trace.up.after.items() if oid not in trace.down.before}
    left |= trace.down.after
    for change in changes(_nameless(trace.up.before), _nameless(left)):
        if isinstance(change.after, Constraint) and change.before and change.after.valid:
            continue  # a constraint became valid, which no rollback needs to undo
        where = change.table if change.kind == "table" else f"{change.name} of {change.table}"
        what = f"{change.kind} {where} is {_became(change)}"
        yield Spot(trace.down, None, table=change.table, values={"what": what})


def _nameless(catalog: Catalog) -> dict[str, Table]:
    """Name each constraint and index by its definition, because the way back may choose other names."""
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


@rule("E305")
def cannot_run_twice(trace: Trace) -> Iterator[Spot]:
    for number, error in trace.reruns.items():
        yield Spot(trace.up, number, values={"error": error})


@rule("E306")
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
    for table, what in trace.mismatches:
        yield Spot(trace.up, table=table, values={"what": what})


@rule("E307")
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


@rule("E308")
def ends_transaction(trace: Trace) -> Iterator[Spot]:
    for passed in trace.passes:
        for statement in passed.statements:
            if statement.ends_transaction:
                yield Spot(passed, None, statement)


@rule("E309")
def two_leaves(trace: Trace) -> Iterator[Spot]:
    if trace.leaves:
        yield Spot(None, values={"leaves": " and ".join(trace.leaves)})
