"""Which object of now does a name of the way back mean, and how much does it hold?

It follows the renames on the way back. What the way back makes itself does not exist now.
"""

import re
from typing import Any, NamedTuple

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ...conf import conf
from ...postgres import catalog, locks
from ...postgres.catalog import Dependent
from ...postgres.statements import quoted, unquoted

TABLE = "SELECT oid, oid::regclass::text FROM pg_class WHERE oid = to_regclass(%s)"
COLUMN = """
    SELECT format_type(atttypid, atttypmod), attgenerated <> '' FROM pg_attribute
    WHERE attrelid = %s AND attname = %s AND attnum > 0
"""
CONSTRAINT = "SELECT oid FROM pg_constraint WHERE conrelid = %s AND conname = %s"
POINTING = """
    WITH RECURSIVE pointing (oid) AS (
        SELECT %s::oid
        UNION
        SELECT conrelid FROM pointing JOIN pg_constraint ON confrelid = pointing.oid
        WHERE contype = 'f' AND confdeltype = ANY (%s::"char"[])
    )
    SELECT array_agg(oid::regclass::text ORDER BY oid::regclass::text) FROM pointing
"""
VIEW = "SELECT true FROM pg_class WHERE oid = ANY (%s) AND relkind IN ('v', 'm')"
ACTS_ON_WRITES = """
    SELECT true FROM pg_trigger WHERE tgrelid = %(table)s AND NOT tgisinternal
    UNION ALL SELECT true FROM pg_rewrite WHERE ev_class = %(table)s
"""
MAY_DO_ANYTHING = """
    SELECT true FROM pg_proc
    WHERE proname = ANY (%s) AND (pronamespace <> 'pg_catalog'::regnamespace OR provolatile = 'v')
          AND proname <> ALL ('{random,gen_random_uuid,uuidv4,uuidv7,clock_timestamp,timeofday,nextval}')
"""


class Table(NamedTuple):
    """An existing table or view: its OID, and its name as PostgreSQL writes it."""

    oid: int
    name: str


class Present:
    """The database of now, under the names of a point on the way back."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.tables_gone: set[int] = set()
        self._gone: set[tuple[str, int]] = set()
        self._moved: set[int] = set()
        self._tables: dict[tuple[str, ...], Table | None] = {}
        self._columns: dict[tuple[int, str], str | None] = {}

    def table(self, name: str) -> Table | None:
        """Return the table of that name; None if it does not exist now. A renamed table's name may lack the schema."""
        key = parts(name)
        if key not in self._tables:
            row = self._ask(TABLE, name)
            found = Table(*row) if row else None
            moved = (
                table
                for other, table in self._tables.items()
                if table and table.oid in self._moved and other[-1] == key[-1] and 1 in {len(other), len(key)}
            )
            is_taken = found and (found.oid in self._moved or found.oid in self.tables_gone)
            self._tables[key] = next(moved, None if is_taken else found)
        return self._tables[key]

    def column(self, table: Table, name: str) -> str | None:
        """Return the column's name of now, without quotes; None if it does not exist now."""
        place = table.oid, plain(name)
        if place not in self._columns:
            self._columns[place] = plain(name) if self._ask(COLUMN, *place) else None
        return self._columns[place]

    def type(self, table: Table, column: str) -> tuple[str, bool]:
        """Return the type of a column, and whether it is generated."""
        row: tuple[str, bool] = self._ask(COLUMN, table.oid, column)
        return row

    def rows(self, table: Table, name: str) -> str:
        """Return a FROM clause that gives the table and its columns their names on the way back."""
        renamed = [
            f", {quoted(now)} AS {quoted(then)}"
            for (oid, then), now in self._columns.items()
            if oid == table.oid and now and now != then
        ]
        return f"(SELECT *{''.join(renamed)} FROM {table.name}) AS {quoted(plain(name))}"  # noqa: S608

    def move_table(self, old: str, *new: str) -> None:
        """Note that the way back renames the table or moves it into another schema.

        Args:
            new: the parts of its new name.
        """
        if table := self.table(old):
            self._forget_names(table)
            self._moved.add(table.oid)
            self._tables[new] = table

    def rename_column(self, table: Table, old: str, new: str) -> None:
        self._columns[table.oid, plain(new)] = self.column(table, old)
        self._columns[table.oid, plain(old)] = None

    def forget_table(self, table: Table) -> None:
        """Note that the way back drops the table."""
        self._forget_names(table)
        self.tables_gone.add(table.oid)
        self._gone.add(("pg_class", table.oid))

    def forget_column(self, table: Table, name: str) -> None:
        """Note that the way back drops the column."""
        self._columns[table.oid, plain(name)] = None

    def forget_constraint(self, table: Table, name: str) -> None:
        if row := self._ask(CONSTRAINT, table.oid, plain(name)):
            self._gone.add(("pg_constraint", int(row[0])))

    def forget(self, dependents: list[Dependent]) -> None:
        """Note that the way back drops these."""
        self._gone.update((one.catalog, one.oid) for one in dependents)

    def dependents(self, table: Table, column: str = "") -> list[Dependent]:
        """Return what depends on it and is not dropped earlier on the way back."""
        return [
            one
            for one in catalog.dependents(self.connection, table.oid, column)
            if not {(one.catalog, one.oid), ("pg_class", one.table)} & self._gone
        ]

    def pointing(self, table: Table, actions: str) -> str:
        """Return the other tables whose foreign keys lead to this one.

        Args:
            actions: the ON DELETE actions of the keys, as letters of pg_constraint.confdeltype.
        """
        return ", ".join(name for name in self._ask(POINTING, table.oid, list(actions))[0] if name != table.name)

    def is_viewed(self, table: Table, column: str) -> bool:
        """Whether a view uses the column; then PostgreSQL refuses to alter its type."""
        oids = [one.oid for one in self.dependents(table, column) if one.catalog == "pg_class"]
        return bool(self._ask(VIEW, oids))

    def acts_on_writes(self, table: Table) -> bool:
        """Whether the table has triggers or rules, or is a view."""
        with self.connection.cursor() as cursor:
            cursor.execute(ACTS_ON_WRITES, {"table": table.oid})
            return cursor.fetchone() is not None

    def may_do_anything(self, functions: list[str]) -> bool:
        """Whether a function of such a name is not PostgreSQL's, or is volatile and not known as harmless."""
        return bool(functions and self._ask(MAY_DO_ANYTHING, [plain(name) for name in functions]))

    def count(self, what: str, rows: str = "", where: str = "") -> int | Error:
        """Count in a read-only transaction that sees all rows and waits for a lock for LOCK_TIMEOUT at most.

        Returns:
            The count, or the error.
        """
        try:
            with transaction.atomic(self.connection.alias), self.connection.cursor() as cursor:
                cursor.execute("SET LOCAL transaction_read_only = on")
                cursor.execute("SET LOCAL row_security = off")
                cursor.execute(f"SET LOCAL lock_timeout = '{locks.milliseconds(conf.LOCK_TIMEOUT)}'")
                cursor.execute(f"SELECT {what} FROM {rows}{where and f' WHERE {where}'}")  # noqa: S608
                return int(cursor.fetchone()[0])
        except Error as error:
            return error

    def _forget_names(self, table: Table) -> None:
        self._tables |= {name: None for name, other in self._tables.items() if other == table}

    def _ask(self, question: str, *values: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(question, values)
            return cursor.fetchone()


def parts(name: str) -> tuple[str, ...]:
    """Return the parts of a name, without quotes."""
    return tuple(unquoted(part) for part in re.findall(r'"(?:[^"]|"")*"|[^.]+', name))


def plain(name: str) -> str:
    """Return the last part of a name, without quotes."""
    return parts(name)[-1]
