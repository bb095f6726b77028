"""What would a row of this table look like? Some code does something only where there are rows.

Keys count from 1, also UUIDs and texts, so a row refers to the row of the same number. If such rows exist already,
further rows are added that refer to them. A nullable column is NULL in every other row. A column with a default has
that. If a constraint refuses the rows, they get the required columns alone; if it refuses those, there are no rows.
"""

import re
from contextlib import suppress
from functools import partial

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .facts import Column, Table

ROWS = 10
HALF = ROWS // 2
LATER = 1000 * ROWS + 1  # the first number if rows of the lower ones exist

# By the type, as format_type() writes it; i is the number of the row.
VALUES = {
    r"smallint|integer|bigint|numeric.*|real|double precision": "i",
    r"text|character.*": "i::text",
    r"boolean": "i % 2 = 0",
    r"uuid": "md5(i::text)::uuid",
    r"date|timestamp.*": "date '2026-01-01' + i::integer",
    r"time .*": "'00:00'",
    r"interval": "'1 day'",
    r"json|jsonb": "'{}'",
    r"bytea": "'x'",
    r"inet|cidr": "'192.0.2.1'",
    r".*\[\]": "'{}'",
}
INSERT = """
    INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
    SELECT {values} FROM generate_series({first}, {first} + {rows} - 1) AS i ON CONFLICT DO NOTHING
"""

OTHER = f"(1 + (i - 1) % {ROWS})"  # the row that a foreign key of row i points to

ADVANCE = f"SELECT nextval(pg_get_serial_sequence(%s, %s)) FROM generate_series(1, {ROWS})"  # noqa: S608


def insert_rows(connection: BaseDatabaseWrapper, tables: list[Table]) -> None:
    """Insert rows into each table; takes ROW EXCLUSIVE on it. The caller rolls the transaction back.

    Sequences go on, so the next row that is inserted gets another key.
    """
    for table in tables:
        name = ".".join(connection.ops.quote_name(part) for part in table.name.split("."))
        filled = [column.name for column in table.columns.values() if column.identity or column.default]
        for every_other in (True, False):
            with suppress(Error), transaction.atomic(connection.alias), connection.cursor() as cursor:
                insert = partial(_insert, connection, table, name, every_other=every_other)
                cursor.execute(insert(1))
                if cursor.rowcount < ROWS:
                    cursor.execute(insert(LATER))
                cursor.executemany(ADVANCE, [(name, column) for column in filled])
                break


def _insert(connection: BaseDatabaseWrapper, table: Table, name: str, first: int, *, every_other: bool) -> str:
    quote = connection.ops.quote_name
    key = {name for one in table.constraints.values() if one.kind == "p" for name in one.columns}
    foreign = {name for one in table.constraints.values() if one.kind == "f" for name in one.columns}
    made = {
        column: re.sub(r"\bi\b", OTHER, _value(column)) if column.name in foreign else _value(column)
        for column in table.columns.values()
    }
    values = {
        column.name: f"CAST({made[column]} AS {column.type})"
        if column.not_null or column.name in key
        else f"CASE WHEN i % 2 = 0 THEN CAST({made[column]} AS {column.type}) END"
        for column in table.columns.values()
        if column.name in key or not column.fills_itself
        if column.name in key or column.not_null or every_other
    }
    return INSERT.format(
        table=name,
        columns=", ".join(map(quote, values)),
        values=", ".join(values.values()),
        rows=ROWS,
        first=first,
    )


def _value(column: Column) -> str:
    return next((value for type_, value in VALUES.items() if re.fullmatch(type_, column.type)), "NULL")
