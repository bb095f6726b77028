"""W4xx, continued: which columns, keys and indexes will somebody want to be otherwise?"""

import re
from collections.abc import Iterator

from ..facts import Column, Constraint, Index, Table, Trace
from ..names import Name
from ..registry import Spot, rule
from .examples import SEQUENCE, operations

IDENTIFIER_TRUNCATED = "42622"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
WIDE = 3  # columns
REFERENCES = re.compile(r"REFERENCES .*?\((?P<column>[^,()]+)\)")


@rule(
    "W403",
    "A foreign key has no index",
    condition="A foreign key is made, and no index begins with its columns.",
    effect="Deleting or changing a row of {target} reads all of {table} to find who refers to it by {columns}.",
    instead="""
Leave db_index of the field as it is, or build an index before the foreign key:

CREATE INDEX CONCURRENTLY IF NOT EXISTS {table_columns:sql} ON {table:sql} ({columns:sql})
""",
    bad="""
operations = [
    migrations.CreateModel("Item", [
        ("id", models.BigAutoField(primary_key=True)),
        ("order", models.ForeignKey("shop.Order", models.CASCADE, db_index=False)),
    ]),
]
""",
    good="""
operations = [
    migrations.CreateModel("Item", [
        ("id", models.BigAutoField(primary_key=True)),
        ("order", models.ForeignKey("shop.Order", models.CASCADE)),
    ]),
]
""",
)
def foreign_key_without_index(trace: Trace) -> Iterator[Spot]:
    for table, key in new_constraints(trace, "f"):
        leading = [index.columns[: len(key.columns)] for index in table.indexes.values() if not index.partial]
        if not any(set(columns) == set(key.columns) for columns in leading):
            yield Spot(trace.up, table=table.name, values={"columns": Name.several(key.columns), "target": key.target})


@rule(
    "W404",
    "A primary key may run out of numbers",
    condition="A new table has a primary key of type integer or smallint.",
    effect="{column} of {table} is {type}: after {most} rows, every INSERT fails, and making it larger then writes the "
    "whole table anew.",
    instead="""
("{field:text}", models.BigAutoField(primary_key=True)),  # or DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
""",
    bad=operations('migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True))])'),
    good=operations('migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True))])'),
)
def small_key(trace: Trace) -> Iterator[Spot]:
    most = {"integer": "2,147,483,647", "smallint": "32,767"}
    for table, key in new_constraints(trace, "p"):
        column = table.columns[key.columns[0]]
        if len(key.columns) == 1 and column.type in most and (column.identity or column.default):
            values = {"column": column.name, "type": column.type, "most": most[column.type]}
            yield Spot(trace.up, table=table.name, values=values)


EXTRA = """\
migrations.RunSQL(
    "ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS extra %s",
    "ALTER TABLE shop_order DROP COLUMN IF EXISTS extra",
)"""


def type_rule(id: str, pattern: str, instead: str, title: str, effect: str, bad: str, good: str) -> None:
    """Register a rule against new columns of some type."""

    @rule(
        id,
        title,
        condition=f"A column is made whose type is {title.split()[-1]}.",
        effect=effect,
        instead=instead,
        bad=operations(EXTRA % bad),
        good=operations(EXTRA % good),
    )
    def typed(trace: Trace) -> Iterator[Spot]:
        for table, column in new_columns(trace):
            if re.fullmatch(pattern, column.type):
                yield Spot(trace.up, table=table, values={"column": column.name, "type": column.type})


type_rule(
    "W405",
    r"json",
    "Use models.JSONField, which is jsonb.",
    "A column is of type json",
    "{column} of {table} is json, which has no equality: DISTINCT, GROUP BY and UNION over such rows fail.",
    "json",
    "jsonb",
)
type_rule(
    "W406",
    r"timestamp(\(\d\))? without time zone",
    "Use timestamp with time zone, which is what models.DateTimeField has.",
    "A column is of type timestamp",
    "{column} of {table} has no time zone, so its values mean another moment for each session's TimeZone.",
    "timestamp",
    "timestamptz",
)
type_rule(
    "W407",
    r"character\(\d+\)",
    "Use text or varchar, and a check for a fixed length.",
    "A column is of type char",
    "{column} of {table} is {type}: it is filled up with blanks, which comparisons ignore and lengths do not count.",
    "char(10)",
    "text",
)


@rule(
    "W408",
    "A name is too long",
    condition="PostgreSQL cut a name to 63 bytes.",
    effect="{notice}: who asks for it by its full name elsewhere may not find it, and two such names may be one.",
    instead="""
Choose a name of at most 63 bytes.
""",
    bad=f"""
operations = [
    migrations.RunSQL(
        "CREATE SEQUENCE IF NOT EXISTS {"long_" * 13}name",
        "DROP SEQUENCE IF EXISTS {"long_" * 13}name",
    ),
]
""",
    good=SEQUENCE,
)
def long_name(trace: Trace) -> Iterator[Spot]:
    for statement in trace.up.statements:
        for notice in statement.notices:
            if notice.startswith(IDENTIFIER_TRUNCATED):
                yield Spot(
                    trace.up, None, statement, values={"notice": notice.removeprefix(IDENTIFIER_TRUNCATED).strip()}
                )


@rule(
    "W412",
    "An index has many columns",
    condition=f"A new index that is not unique has more than {WIDE} columns.",
    effect="Index {name} of {table} has the columns {columns}: the later ones seldom help, and every write keeps them "
    "up to date.",
    instead="""
Keep the columns that the queries select by, with the most selective first; EXPLAIN says which are used.
""",
    bad="""
atomic = False

operations = [
    migrations.RunSQL(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS wide ON shop_order (customer_id, number, created, note)",
        "DROP INDEX CONCURRENTLY IF EXISTS wide",
    ),
]
""",
    good="""
atomic = False

operations = [
    migrations.RunSQL(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS narrow ON shop_order (customer_id, created)",
        "DROP INDEX CONCURRENTLY IF EXISTS narrow",
    ),
]
""",
)
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


@rule(
    "W413",
    "A foreign key has another type than what it points to",
    condition="The types of a foreign key's column and of the column that it references differ.",
    effect="{column} of {table} is {type}, and {target} has {other}: comparisons convert one of them, and the smaller "
    "one may run out of values.",
    instead="""
Give the column the type of what it points to.
""",
    bad="""
operations = [
    migrations.RunSQL(
        "CREATE TABLE item (id bigint PRIMARY KEY, order_id integer REFERENCES shop_order (id)); "
        "CREATE INDEX item_order ON item (order_id)",
        "DROP TABLE item",
    ),
]
""",
    good="""
operations = [
    migrations.RunSQL(
        "CREATE TABLE item (id bigint PRIMARY KEY, order_id bigint REFERENCES shop_order (id)); "
        "CREATE INDEX item_order ON item (order_id)",
        "DROP TABLE item",
    ),
]
""",
)
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
