"""How do a model and its table differ?

Indexes and constraints that Django names itself are found by their columns, others by their names. Those on a column
that has no field are not compared: they go when the column goes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error, connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import DefinitionDiffers
from ..postgres import definitions
from .facts import Change, Constraint, Index, Table


def differences(model: type[models.Model], table: Table | None, alias: str, *, both_ways: bool = True) -> Iterator[str]:
    """Say each difference in one sentence.

    Args:
        alias: of the database whose types the fields have.
        both_ways: whether indexes and constraints that only the table has are differences, too.
    """
    meta = model._meta
    if table is None:
        yield f"model {meta.object_name} has table {meta.db_table}, which does not exist"
        return
    types = {field: field.db_type(connections[alias]) for field in meta.local_concrete_fields}
    fields = {str(field.column): field for field, type_ in types.items() if type_ is not None}
    for column, field in fields.items():
        if column in table.columns:
            yield from _of_column(field, str(types[field]), table)
        else:
            yield f"field {meta.object_name}.{field.name} has column {column}, which {table.name} has not"
    for other in table.columns.values():
        if other.name not in fields and other.not_null and not other.fills_itself:
            yield f"column {other.name} of {table.name} is NOT NULL without a default, and no field has it"
    yield from _missing(model, table)
    if both_ways:
        yield from _unnamed(model, table, fields)


def _missing(model: type[models.Model], table: Table) -> Iterator[str]:
    """Yield the indexes and constraints that the model names and the table does not have."""
    there = _parts_of(table)
    for name in sorted(_names(model)):
        if name not in there or not there[name].valid:
            missing = "invalid" if name in there else "not there"
            yield f"{name} of model {model._meta.object_name} is {missing} in {table.name}"
    for columns in unique_in(model):
        if columns <= table.columns.keys() and not any(_is_unique(index, columns) for index in table.indexes.values()):
            yield f"{', '.join(sorted(columns))} of {table.name} is not unique, as model {model._meta.object_name} says"


def _unnamed(model: type[models.Model], table: Table, fields: dict[str, Any]) -> Iterator[str]:
    """Yield the indexes and constraints that the table has and the model does not name."""
    named, uniques = _names(model), unique_in(model)
    for name, part in _parts_of(table).items():
        if name not in named and set(part.columns) <= fields.keys() and not _is_known(part, fields, uniques):
            kind = "index" if isinstance(part, Index) else "constraint"
            yield f"{table.name} has the {kind} {name}, which model {model._meta.object_name} does not name"


def _parts_of(table: Table) -> dict[str, Index | Constraint]:
    return {**table.indexes, **table.constraints}


def _names(model: type[models.Model]) -> dict[str, Any]:
    """Return the indexes and constraints that the model names, by their names in PostgreSQL, which has 63 bytes."""
    parts: list[Any] = [*model._meta.indexes, *model._meta.constraints]
    return {part.name.encode()[:63].decode(errors="ignore"): part for part in parts}


def mismatches(
    connection: BaseDatabaseWrapper, code: Mapping[str, type[models.Model]], changed: Iterable[Change]
) -> Iterator[tuple[str, str]]:
    """Yield the table and a sentence for each new index or constraint that is not the one of that name in its model.

    PostgreSQL describes both: the one of the model is built on a temporary table.
    """
    editor = connection.SchemaEditorClass(connection, collect_sql=True)
    for change in changed:
        if change.table not in code or not isinstance(change.after, Index | Constraint):
            continue
        model: Any = code[change.table]
        part = _names(model).get(change.name)
        table = ".".join(connection.ops.quote_name(name) for name in change.table.split("."))
        name, sql = connection.ops.quote_name(change.name), part and part.create_sql(model, editor)
        if not sql:
            continue
        try:
            wanted = definitions.added(connection, sql, None, like=table)
            same_kind = [one for one in wanted if one.kind == change.kind]
            definitions.compare(connection, change.kind, table, name, sql, same_kind)
        except DefinitionDiffers as error:
            yield change.table, f"the model has {error.wanted}, and {change.table} has {error.found}"
        except (Error, definitions.NotComparable):  # the table has changed, or the name is another's
            continue


def unique_in(model: type[models.Model]) -> set[frozenset[str]]:
    """Return the sets of columns that the model knows to be unique."""
    meta = model._meta
    column = {field.name: str(field.column) for field in meta.local_concrete_fields}
    known = [[field.name] for field in meta.local_concrete_fields if field.unique]
    known += [list(names) for names in meta.unique_together]
    known += [list(c.fields) for c in meta.constraints if isinstance(c, models.UniqueConstraint) and c.fields]
    return {frozenset(column.get(name, name) for name in names) for names in known}


def _of_column(field: Any, type_: str, table: Table) -> Iterator[str]:
    """Yield what the field says and its column is not."""
    column, name = table.columns[field.column], table.name
    if plain(type_) != plain(column.type):
        yield f"column {column.name} of {name} is {column.type}, and field {field.name} is {type_}"
    if column.not_null == field.null and not field.primary_key:
        is_, says = ("NOT NULL", "null=True") if column.not_null else ("not NOT NULL", "null=False")
        yield f"column {column.name} of {name} is {is_}, and field {field.name} has {says}"
    if field.db_index and not any(index.columns[:1] == (column.name,) for index in table.indexes.values()):
        yield f"column {column.name} of {name} has no index, and field {field.name} has db_index=True"
    keys = [one.columns for one in table.constraints.values() if one.kind == "f"]
    if _has_foreign_key(field) and (column.name,) not in keys:
        yield f"column {column.name} of {name} has no foreign key, and field {field.name} is a {type(field).__name__}"


def _is_known(part: Index | Constraint, fields: dict[str, Any], uniques: set[frozenset[str]]) -> bool:
    """Whether a field has such an index or constraint."""
    columns = [fields[column] for column in part.columns]
    if isinstance(part, Index):
        if part.constraint or part.unique:
            return part.constraint or frozenset(part.columns) in uniques
        return len(columns) == 1 and (columns[0].db_index or columns[0].unique)
    if part.kind == "u":
        return frozenset(part.columns) in uniques
    is_one = len(columns) == 1
    known = {"p": True, "f": is_one and _has_foreign_key(columns[0]), "c": is_one and _has_check(columns[0])}
    return known.get(part.kind, False)


def _has_foreign_key(field: Any) -> bool:
    return field.remote_field is not None and getattr(field, "db_constraint", False)


def _has_check(field: Any) -> bool:
    return field.db_check(connections[DEFAULT_DB_ALIAS]) is not None


def _is_unique(index: Index, columns: frozenset[str]) -> bool:
    return index.unique and frozenset(index.columns) == columns


def plain(type_: str) -> str:
    """Write a type as PostgreSQL does."""
    type_ = re.sub(r"\s*COLLATE.*|\s+(?=[(,)])|(?<=[(,])\s+", "", type_.strip('"'))
    type_ = re.sub(
        r"\b(big|small)?serial\b", lambda m: {"big": "bigint", "small": "smallint"}.get(m[1], "integer"), type_
    )
    type_ = re.sub(r"^varchar\b", "character varying", type_)
    type_ = re.sub(r"^char\b", "character", type_)
    return re.sub(r"^time$", "time without time zone", type_)
