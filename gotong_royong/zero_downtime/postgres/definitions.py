"""Is an existing object the one that a statement would make?

Both are compared as PostgreSQL describes them. The wanted object is built on a stand-in, an empty temporary table that
is rolled back. PostgreSQL rewrites some expressions when it reads its own description, for example from a backup. So if
the descriptions differ, both are built again from them and compared.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from django.db import ProgrammingError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import DefinitionDiffers
from . import catalog, locks
from .catalog import Part

STAND_IN = "pg_temp.zero_downtime_stand_in"
CLONE = f"CREATE TABLE {STAND_IN} (LIKE %s INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY)"
CLONE_WITHOUT = f"ALTER TABLE {STAND_IN} DROP COLUMN %s CASCADE"
CREATE_COLLATION = "CREATE COLLATION %s%s"

PART = "zero_downtime_part"
ADD_PART = {
    "column": f"ALTER TABLE {STAND_IN} ADD COLUMN {PART} %s",
    "constraint": f"ALTER TABLE {STAND_IN} ADD CONSTRAINT {PART} %s",
    "index": "CREATE %s",
}
INDEX_ON_STAND_IN = f"INDEX {PART} ON {STAND_IN}"


class NotComparable(Exception):
    """The role may not make a temporary table, or not use an object that the statement names."""


class Filled(str):
    """A statement that keeps its template and its parts, as Django's ``Statement`` does."""

    template: str
    parts: dict[str, Any]
    tail: str

    def __new__(cls, text: str, template: str, parts: dict[str, Any], tail: str = "") -> "Filled":
        filled = super().__new__(cls, text)
        filled.template, filled.parts, filled.tail = template, parts, tail
        return filled

    def __add__(self, tail: str) -> "Filled":
        return Filled(super().__add__(tail), self.template, self.parts, self.tail + tail)


class Template(str):
    """The template of one of Django's statements; ``%`` makes a ``Filled`` of it."""

    def __mod__(self, parts: Any) -> Filled:
        return Filled(super().__mod__(parts), self, parts)


class Mismatch(NamedTuple):
    """A column differs from what a statement expects; a later operation of the same migration may change it."""

    table: str
    column: str  # its plain name
    complain: Callable[[], object]


def added(
    connection: BaseDatabaseWrapper, sql: Any, params: Any, like: str = "", without: str = "", **parts: str
) -> list[Part]:
    """Return what the statement adds to an empty temporary table, which is rolled back.

    Takes ACCESS SHARE on ``like`` until then
    (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).

    Args:
        sql: a ``Filled``, or Django's ``Statement``.
        like: the table whose columns the temporary table has; if empty, the statement makes the table.
        without: the column of ``like`` that it lacks.
        parts: parts of the statement to replace.

    Raises:
        NotComparable: if the role lacks a right for it.
    """
    template = str(sql.template).replace(" CONCURRENTLY", "")
    statement = template % {**sql.parts, "table": STAND_IN, **parts} + getattr(sql, "tail", "")
    with _rolled_back(connection):
        if like:
            _execute(connection, CLONE % like)
        if without:
            _execute(connection, CLONE_WITHOUT % without)
        before = catalog.parts(connection, STAND_IN)
        _execute(connection, statement, params)
        after = catalog.parts(connection, STAND_IN)
    return [part for part in after if part not in before]


def compare(
    connection: BaseDatabaseWrapper,
    kind: str,
    table: str,
    name: str,
    sql: Any,
    wanted: list[Part],
    *,
    any_default: bool = False,
) -> list[Mismatch]:
    """Compare each wanted part with the table's, by name unless PostgreSQL chose the name; return differing columns.

    Takes ACCESS SHARE on the table for a moment
    (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).

    Args:
        kind, name: of the object that ``sql`` makes, for an error.
        any_default: whether to ignore the defaults of columns.

    Raises:
        DefinitionDiffers: if a constraint or an index differs.
    """

    def meaning(part: Part) -> tuple[object, ...]:
        return part.kind, part.definition, any_default or part.default

    found, mismatches = catalog.parts(connection, table), []
    for part in wanted:
        named = part.kind == "column" or f'"{part.name}"' in str(sql)
        others = [other for other in found if other.kind == part.kind and (other.name == part.name or not named)]
        if meaning(part) in map(meaning, others):
            continue
        if others and (read_again := _read_again(connection, table, part)):
            others_again = [_read_again(connection, table, other) for other in others]
            if meaning(read_again) in [meaning(other) for other in others_again if other]:
                continue
        there = " ".join(str(other) for other in others if other.name == part.name) or f"no such {part.kind}"
        error = DefinitionDiffers(kind, on(table, name), f"{part.name} {there}", f"{part.name} {part}")
        if part.kind != "column":
            raise error
        mismatches.append(Mismatch(table, part.name, partial(_throw, error)))
    return mismatches


def collation(connection: BaseDatabaseWrapper, definition: str) -> str | None:
    """Return the catalog's description of a collation with that definition; the collation is rolled back."""
    name = f"pg_temp.{PART}"
    with _rolled_back(connection):
        _execute(connection, CREATE_COLLATION % (name, definition))
        return catalog.collation(connection, name)


def plain(name: str) -> str:
    """Return a name without quotes, cut to 63 bytes as PostgreSQL does."""
    return name.replace('"', "").encode()[:63].decode(errors="ignore")


def on(table: str, name: str) -> str:
    """Return ``name on table``, or the name alone."""
    return " on ".join(plain(part) for part in (name, table) if part)


def _read_again(connection: BaseDatabaseWrapper, table: str, part: Part) -> Part | None:
    """Return the part as PostgreSQL describes it after reading its description; None if the table cannot have it."""
    try:
        with _rolled_back(connection):
            _execute(connection, CLONE % table)
            _execute(
                connection, ADD_PART[part.kind] % str(part).replace("INDEX", INDEX_ON_STAND_IN, part.kind == "index")
            )
            return next(new for new in catalog.parts(connection, STAND_IN) if (new.kind, new.name) == (part.kind, PART))
    except ProgrammingError:
        return None


@contextmanager
def _rolled_back(connection: BaseDatabaseWrapper) -> Iterator[None]:
    try:
        with transaction.atomic(connection.alias):
            yield
            transaction.set_rollback(True, connection.alias)
    except ProgrammingError as error:
        if locks.sqlstate(error) == locks.NOT_ALLOWED:
            raise NotComparable from error
        raise


def _execute(connection: BaseDatabaseWrapper, sql: str, params: Any = None) -> None:
    """Execute with the parameters written into the SQL, as Django's editor does: DDL takes none."""
    operations: Any = connection.ops
    with connection.cursor() as cursor:
        cursor.execute(sql if params is None else operations.compose_sql(sql, params), None)


def _throw(error: Exception) -> None:
    raise error
