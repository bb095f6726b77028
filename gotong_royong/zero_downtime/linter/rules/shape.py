"""W4xx, continued: which columns, keys and indexes cause trouble later?"""

import re
from collections.abc import Iterator

from ..facts import Column, Constraint, Index, Table, Trace
from ..names import Name
from ..registry import Spot, rule

IDENTIFIER_TRUNCATED = "42622"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
WIDE = 3  # columns
TYPES = {
    "W405": re.compile(r"json"),
    "W406": re.compile(r"timestamp(\(\d\))? without time zone"),
    "W407": re.compile(r"character\(\d+\)"),
}
REFERENCES = re.compile(r"REFERENCES .*?\((?P<column>[^,()]+)\)")


@rule("W403")
def foreign_key_without_index(trace: Trace) -> Iterator[Spot]:
    for table, key in new_constraints(trace, "f"):
        leading = [index.columns[: len(key.columns)] for index in table.indexes.values() if not index.partial]
        if not any(set(columns) == set(key.columns) for columns in leading):
            yield Spot(trace.up, table=table.name, values={"columns": Name.several(key.columns), "target": key.target})


@rule("W404")
def small_key(trace: Trace) -> Iterator[Spot]:
    most = {"integer": "2,147,483,647", "smallint": "32,767"}
    for table, key in new_constraints(trace, "p"):
        column = table.columns[key.columns[0]]
        if len(key.columns) == 1 and column.type in most and (column.identity or column.default):
            values = {"column": column.name, "type": column.type, "most": most[column.type]}
            yield Spot(trace.up, table=table.name, values=values)


@rule("W405", "W406", "W407")
def column_of_type(trace: Trace, id: str) -> Iterator[Spot]:
    for table, column in new_columns(trace):
        if TYPES[id].fullmatch(column.type):
            yield Spot(trace.up, table=table, values={"column": column.name, "type": column.type})


@rule("W408")
def long_name(trace: Trace) -> Iterator[Spot]:
    for statement in trace.up.statements:
        for notice in statement.notices:
            if notice.startswith(IDENTIFIER_TRUNCATED):
                yield Spot(
                    trace.up, None, statement, values={"notice": notice.removeprefix(IDENTIFIER_TRUNCATED).strip()}
                )


@rule("W412")
def wide_index(trace: Trace) -> Iterator[Spot]:
    for change in trace.up.changes:
        old = {}
        new = change.after.indexes if isinstance(change.after, Table) else {}
        if change.kind == "index" and isinstance(change.after, Index):
            old, new = {change.name: change.before} if change.before else {}, {change.name: change.after}
        for name, index in new.items():
            if name not in old and not index.unique and len(index.columns) > WIDE:
                values = {"name": name, "columns": Name.several(index.columns)}
                yield Spot(trace.up, table=change.table, values=values)


@rule("W413")
def other_type(trace: Trace) -> Iterator[Spot]:
    for table, key in new_constraints(trace, "f"):
        match, target = REFERENCES.search(key.definition), trace.tables.get(key.target or "")
        if match and target and len(key.columns) == 1 and match["column"].strip('"') in target.columns:
            types = table.columns[key.columns[0]].type, target.columns[match["column"].strip('"')].type
            if types[0] != types[1]:
                values = {"column": key.columns[0], "type": types[0], "target": key.target, "other": types[1]}
                yield Spot(trace.up, table=table.name, values=values)


def new_columns(trace: Trace) -> Iterator[tuple[str, Column]]:
    for change in trace.up.changes:
        if change.before is None and isinstance(change.after, Table):
            for column in change.after.columns.values():
                yield change.table, column
        elif isinstance(change.after, Column) and getattr(change.before, "type", None) != change.after.type:
            yield change.table, change.after


def new_constraints(trace: Trace, kind: str) -> Iterator[tuple[Table, Constraint]]:
    """Yield the new constraints of that kind, with their tables as they are now."""
    tables = {table.name: table for table in trace.up.after.values()}
    for change in trace.up.changes:
        table = tables.get(change.table)
        if table and change.before is None:
            new = change.after.constraints.values() if isinstance(change.after, Table) else [change.after]
            yield from ((table, c) for c in new if isinstance(c, Constraint) and c.kind == kind)
