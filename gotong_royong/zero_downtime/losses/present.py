"""What is there now under a name of the way back, and how much of it?

Renames on the way back are followed. What the way back makes itself is not there now.
"""

from typing import Any, NamedTuple

from django.db import Error, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from gotong_royong.zero_downtime import catalog, locks
from gotong_royong.zero_downtime.catalog import Dependent
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.losses.words import parts, plain

TABLE = "SELECT oid, oid::regclass::text FROM pg_class WHERE oid = to_regclass(%s)"
TYPE = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s AND attname = %s AND attnum > 0"
CONSTRAINT = "SELECT oid FROM pg_constraint WHERE conrelid = %s AND conname = %s"
GENERATED = "SELECT true FROM pg_attribute WHERE attrelid = %s AND attname = %s AND attgenerated <> ''"
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
FUNCTION = """
    SELECT true FROM pg_proc
    WHERE proname = ANY (%s) AND provolatile = 'v' AND pronamespace <> 'pg_catalog'::regnamespace
"""


class Table(NamedTuple):
    """A table or view that is there now: its OID, and its name as PostgreSQL writes it."""

    oid: int
    name: str


class Present:
    """The database as it is now, seen from a place on the way back."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.tables_gone: set[int] = set()
        self._gone: set[tuple[str, int]] = set()
        self._moved: set[int] = set()
        self._tables: dict[tuple[str, ...], Table | None] = {}
        self._columns: dict[tuple[int, str], str | None] = {}

    def table(self, name: str) -> Table | None:
        """Return what bears the name; None if it is not there now. The schema of a renamed one may be left out."""
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
        """Return what the column is called now, without quotes; None if it is not there now."""
        place = table.oid, plain(name)
        if place not in self._columns:
            self._columns[place] = plain(name) if self._ask(TYPE, *place) else None
        return self._columns[place]

    def type(self, table: Table, column: str) -> str:
        return str((self._ask(TYPE, table.oid, column) or [""])[0])

    def move_table(self, old: str, *new: str) -> None:
        """Say that the way back has renamed the table, or put it into another schema: the parts of its new name."""
        if table := self.table(old):
            self._forget_names(table)
            self._moved.add(table.oid)
            self._tables[new] = table

    def rename_column(self, table: Table, old: str, new: str) -> None:
        self._columns[table.oid, plain(new)] = self.column(table, old)
        self._columns[table.oid, plain(old)] = None

    def has_renamed(self, table: Table, name: str) -> bool:
        """Whether the table that has this name on the way back, or a column of it, is called otherwise now."""
        columns = (was != now for (oid, was), now in self._columns.items() if oid == table.oid and now)
        return table.name not in {name, plain(name)} or any(columns)

    def forget_table(self, name: str) -> None:
        """Say that the way back has dropped the table."""
        if table := self.table(name):
            self._forget_names(table)
            self.tables_gone.add(table.oid)
            self._gone.add(("pg_class", table.oid))

    def forget_column(self, table: Table, name: str) -> None:
        """Say that the way back has dropped the column."""
        self._columns[table.oid, plain(name)] = None

    def forget_constraint(self, table: Table, name: str) -> None:
        if row := self._ask(CONSTRAINT, table.oid, plain(name)):
            self._gone.add(("pg_constraint", int(row[0])))

    def forget(self, dependents: list[Dependent]) -> None:
        self._gone.update((one.catalog, one.oid) for one in dependents)

    def dependents(self, table: Table, column: str = "") -> list[Dependent]:
        """Return what cannot be without it, as far as the way back has left it."""
        return [
            one
            for one in catalog.dependents(self.connection, table.oid, column)
            if not {(one.catalog, one.oid), ("pg_class", one.table)} & self._gone
        ]

    def pointing(self, table: Table, actions: str) -> list[str]:
        """Return the tables whose foreign keys lead to this one.

        Args:
            actions: which of the keys, by what deleting does there, a letter each.
        """
        rows = (self._ask(POINTING, table.oid, list(actions)) or [[]])[0]
        return list(rows)

    def is_generated(self, table: Table, column: str) -> bool:
        """Whether its values are made from those of other columns."""
        return bool(self._ask(GENERATED, table.oid, column))

    def is_viewed(self, table: Table, column: str) -> bool:
        """Whether a view shows the column, whose type PostgreSQL does not alter then."""
        oids = [one.oid for one in self.dependents(table, column) if one.catalog == "pg_class"]
        return bool(self._ask(VIEW, oids))

    def may_write(self, functions: list[str]) -> bool:
        """Whether a function of such a name is not PostgreSQL's and may change something."""
        return bool(functions and self._ask(FUNCTION, [plain(name) for name in functions]))

    def _forget_names(self, table: Table) -> None:
        self._tables |= {name: None for name, other in self._tables.items() if other == table}

    def count(self, question: str) -> int | Error:
        """Ask as one who only reads, sees all rows and waits no longer than the lock timeout."""
        try:
            with transaction.atomic(self.connection.alias), self.connection.cursor() as cursor:
                cursor.execute("SET LOCAL transaction_read_only = on")
                cursor.execute("SET LOCAL row_security = off")
                cursor.execute(f"SET LOCAL lock_timeout = '{locks.milliseconds(conf.LOCK_TIMEOUT)}'")
                cursor.execute(question)
                return int(cursor.fetchone()[0])
        except Error as error:
            return error

    def _ask(self, question: str, *values: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(question, values)
            return cursor.fetchone()
