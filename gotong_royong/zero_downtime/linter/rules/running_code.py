"""E2xx: what breaks the code that runs while the migration is applied?

Before a deploy, the old code runs, and what its models name must stay. A migration of ``Stage.POST_DEPLOY`` is applied
when the code of the newest state runs everywhere.
"""

import re
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from django.db import models
from django.db.backends.postgresql.base import DatabaseWrapper

from ...stages import Stage, said_stage
from ..differences import unique_in
from ..facts import Change, Column, Constraint, Index, Statement, Table, Trace
from ..names import Name
from ..registry import Spot, rule
from .locks import adds_required_column, recipe_of

# https://www.postgresql.org/docs/current/datatype.html: all values of the first type fit into the second.
WIDER = {
    "smallint": {"integer", "bigint", "numeric", "text", "character varying"},
    "integer": {"bigint", "numeric", "text", "character varying"},
    "bigint": {"numeric", "text", "character varying"},
    "date": {"timestamp with time zone", "timestamp without time zone", "text", "character varying"},
    "real": {"double precision"},
    "character varying": {"text"},
    "character": {"text", "character varying"},
    "text": {"character varying"},
    "json": {"jsonb", "text"},
    "jsonb": {"json", "text"},
    "uuid": {"text"},
    "timestamp with time zone": {"timestamp without time zone", "text"},
    "timestamp without time zone": {"timestamp with time zone", "text"},
}
TYPE = re.compile(r"(?P<name>[^(]+?)(?:\((?P<sizes>[\d,]+)\))?(?P<rest>[^(]*)")


def fields(model: type[models.Model]) -> dict[str, Any]:
    """Return the fields that have a column, by its name."""
    return {str(field.column): field for field in model._meta.local_concrete_fields}


def known_changes(trace: Trace) -> Iterator[tuple[Change, dict[str, Any]]]:
    """Yield the changes of tables that the running code names, with the fields it has there."""
    for change in trace.up.changes:
        name = change.before.name if isinstance(change.before, Table) else change.table
        if model := trace.running.get(name):
            yield change, fields(model)


def altered(trace: Trace) -> Iterator[tuple[Change, Any, Column, Column]]:
    """Yield each column that changed and that the running code has a field for, as it was before and after."""
    for change, known in known_changes(trace):
        old, new = change.before, change.after
        if isinstance(old, Column) and isinstance(new, Column) and change.name in known:
            yield change, known[change.name], old, new


def statement_of(trace: Trace, change: Change) -> Statement | None:
    """Return the last statement that changed that part of the table, also under an earlier name of the table."""
    touching = [
        (one.table == change.table, statement)
        for statement in trace.up.statements
        for one in statement.changes
        if (one.kind, one.name) == (change.kind, change.name) and one.table not in trace.tables.keys() - {change.table}
    ]
    return sorted(touching, key=itemgetter(0))[-1][1] if touching else None


def spot(trace: Trace, change: Change, **values: Any) -> Spot:
    statement = statement_of(trace, change)
    lock = statement.held.get(change.table) if statement else None
    return Spot(trace.up, None, statement, change.table, lock, {"name": change.name, **values})


@rule("E201")
def table_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        if isinstance(change.before, Table):
            name, after = change.before.name, change.after
            now = trace.tables.get(name)
            if isinstance(after, Table) and now and known.keys() <= now.columns.keys():
                continue
            what = f"renamed to {after.name}" if isinstance(after, Table) else "dropped"
            if isinstance(after, Table) and after.name.endswith(f".{name}"):
                what = f"now {after.name}, which is not in the search path"
            yield spot(trace, change._replace(table=name), what=what)


@rule("E202")
def column_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        if change.kind == "column" and change.after is None and change.name in known:
            yield spot(trace, change, column=change.name)


@rule("E203")
def required_column(trace: Trace) -> Iterator[Spot]:
    for change in trace.up.changes:
        model = trace.running.get(change.table)
        is_known = model is not None and change.name in fields(model)
        if adds_required_column(change) and not is_known and statement_of(trace, change):
            yield spot(trace, change, column=change.name)


def takes_all(old: str, new: str) -> bool:
    """Whether the type ``new`` takes all values of ``old``."""
    if old == new:
        return True
    (kind, sizes), (other, limits) = _parsed(old), _parsed(new)
    if kind != other and other not in WIDER.get(kind, ()):
        return False
    if not limits or not sizes:
        return not limits
    if kind == other == "numeric":
        return _digits_before_point(sizes) <= _digits_before_point(limits) and sizes[1:] <= limits[1:]
    return kind.startswith("character") and sizes[0] <= limits[0]


def _parsed(type_: str) -> tuple[str, list[int]]:
    """Return a type without its sizes, and its sizes: ``numeric(10,2)`` has 10 and 2."""
    match = TYPE.fullmatch(type_)
    if not match:
        return type_, []
    return match["name"].strip() + match["rest"], [int(size) for size in (match["sizes"] or "").split(",") if size]


def _digits_before_point(sizes: list[int]) -> int:
    precision, *scale = sizes
    return precision - sum(scale)


@rule("E204")
def narrower_type(trace: Trace) -> Iterator[Spot]:
    for change, _, old, new in altered(trace):
        if not takes_all(old.type, new.type):
            yield spot(trace, change, column=change.name, before=old.type, after=new.type)


@rule("E205")
def null_refused(trace: Trace) -> Iterator[Spot]:
    for change, field, old, new in altered(trace):
        if new.not_null and not old.not_null and field.null:
            yield spot(trace, change, column=change.name)


@rule("E206")
def unknown_unique(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        index = change.after
        if change.before or not isinstance(index, Index) or not index.unique or not set(index.columns) <= set(known):
            continue
        if frozenset(index.columns) not in unique_in(trace.running[change.table]):
            yield spot(trace, change, columns=Name.several(index.columns))


@rule("W418")
def unique_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        old, table = change.before, trace.tables.get(change.table)
        if not isinstance(old, Index) or not old.unique or change.after or not table:
            continue
        is_like = (recipe_of(one)["body"] == recipe_of(old)["body"] for one in table.indexes.values() if one.unique)
        model = trace.running[change.table]
        is_named = old.name in {one.name for one in model._meta.constraints}
        is_named |= not old.partial and frozenset(old.columns) in unique_in(model)
        is_left_to_old_code = said_stage(trace.migration) != Stage.POST_DEPLOY
        columns = {column for column in old.columns if column}
        if columns <= known.keys() & table.columns.keys() and (is_named or is_left_to_old_code) and not any(is_like):
            yield spot(trace, change, columns=Name.several(old.columns))


@rule("E207")
def label_gone(trace: Trace) -> Iterator[Spot]:
    for type_, label in trace.up.enums:
        statement = next((s for s in trace.up.statements if type_ in s.sql), None)
        yield Spot(trace.up, None, statement, "", None, {"type": type_, "label": label})


@rule("E208")
def default_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        old, new = change.before, change.after
        if isinstance(old, Column) and isinstance(new, Column) and old.fills_itself and not new.fills_itself:
            field = known.get(change.name)
            if field.db_returning if field else new.not_null:
                yield spot(trace, change, column=change.name)


@rule("W415")
def unknown_constraint(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        new = change.after
        if change.before is None and isinstance(new, Constraint) and new.kind in "cfx" and new.columns:
            meta = trace.running[change.table]._meta
            has = {constraint.name for constraint in meta.constraints}
            keys = {column for column, field in known.items() if field.remote_field}
            checked = DatabaseWrapper.data_type_check_constraints
            chosen = {
                column for column, field in known.items() if field.choices or field.get_internal_type() in checked
            }
            keeps_to_it = {"f": keys, "c": chosen, "x": set()}[new.kind]
            if not set(new.columns) <= set(known) or new.name in has or set(new.columns) <= keeps_to_it:
                continue
            yield spot(trace, change, columns=Name.several(new.columns), definition=new.definition)
