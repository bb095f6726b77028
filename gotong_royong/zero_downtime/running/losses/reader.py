"""What do the statements of a way back destroy, and which of them must fail?"""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration

from ...exceptions import counted, summary
from ...postgres import locks
from ...postgres.changes import HAS_VALUE, NOTHING, called, read
from ...postgres.statements import Object, Statement, quoted, split
from .present import Present, Table, parts, plain

IS_CUT = re.compile(r"(?:character varying|character|varchar|char|bpchar|bit|bit varying|varbit) ?\(", re.IGNORECASE)
"""Types that refuse a value that is too long on assignment, and cut it on a cast."""
CANNOT_BE_CONVERTED = "22", "42846"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
HOLDS_ROWS = {"table", "foreign table", "materialized view"}
CANNOT_BE_TOLD = {"schema", "extension", "sequence"}

Said = dict[str, str]


class Loss(NamedTuple):
    """What a step down destroys, or why it must fail, in words."""

    migration: Migration
    text: str
    must_fail: bool = False

    def __str__(self) -> str:
        return self.text


class Reader:
    """Reads the statements of a plan down, one after the other, and finds the losses.

    Takes ACCESS SHARE on tables to count their rows: see ``Present.count``.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.losses: list[Loss] = []
        self.present = Present(connection)
        self.goes_along: set[tuple[str, int]] = set()
        """The dependents that CASCADE drops, by catalog table and OID."""
        self._filled: set[tuple[int, str]] = set()
        self._enums: dict[str, str] = {}
        self._is_blurred = False
        """Whether an earlier statement may change rows, so that counts of now may be wrong."""
        self._has_triggers = False
        self._made_back: set[str] = set()
        """The names of what the way back makes or renames."""
        self._migration: Migration
        self._stays: Collection[Object]
        self._made: Collection[Object] | None
        self._of_statements: dict[str, Callable[[Statement, Said], None]] = {
            "drop": self._drop,
            "truncate": self._truncate,
            "delete": self._write,
            "update": self._write,
            "fill": self._write,
            "insert": self._write,
        }
        self._of_tables: dict[str, Callable[[Table, Said], None]] = {
            "rename column": lambda table, said: self.present.rename_column(table, said["name"], said["new"]),
            "drop constraint": lambda table, said: self.present.forget_constraint(table, said["name"]),
            "drop column": self._drop_column,
            "add column": self._add_column,
            "convert": self._convert,
            "not null": self._set_not_null,
            "unique": self._add_unique,
            "check": self._add_check,
            "key": self._add_key,
        }

    def read(
        self, migration: Migration, sql: str, stays: Collection[Object] = (), made: Collection[Object] | None = None
    ) -> None:
        """Read a string of SQL.

        Args:
            stays: what existed before the migration, so that its way back leaves it.
            made: what its SQL makes; None for Django's operations, which drop only what they made.
        """
        self._migration, self._stays, self._made = migration, stays, made
        for statement in split(sql):
            if statement.verb:
                self._read(statement)

    def not_told(self, migration: Migration, what: str) -> None:
        """Note something with unknown losses."""
        self._migration = migration
        self._lose(f"{what}: what is lost is not known")
        self._is_blurred = True

    def _read(self, statement: Statement) -> None:
        if self.present.may_do_anything(called(statement)):
            self._not_told(statement)
        if statement.verb == "CREATE":
            self._made_back.update(plain(one.name) for one in statement.objects)
        for what, said in read(statement):
            if does := self._of_statements.get(what):
                does(statement, said)
            elif what == "rename table":
                self.present.move_table(said["table"], *parts(said["table"])[:-1], plain(said["new"]))
            elif what == "move table":
                self.present.move_table(said["table"], plain(said["new"]), plain(said["table"]))
            elif what in self._of_tables:
                if table := self.present.table(said["table"]):
                    self._of_tables[what](table, said)
            elif what == "enum":
                self._enums[plain(said["name"])] = said["labels"]
            elif what == "rename":
                self._made_back.add(plain(said["new"]))
            elif what == "trigger":
                self._has_triggers = True
            elif what != NOTHING:
                self._not_told(statement)

    # Columns

    def _drop_column(self, table: Table, said: Said) -> None:
        column = self.present.column(table, said["name"])
        self.present.forget_column(table, said["name"])
        if column is None or self._was_there("column", said["name"]):
            return
        shown = f"{table.name}.{column}"
        if not self.present.type(table, column)[1]:
            self._lose_counted("value", table, f"count({quoted(column)})", of=shown)
        self._lose_dependents(table, column, shown, cascades=bool(said["cascade"]))

    def _add_column(self, table: Table, said: Said) -> None:
        has_none = "not null" in said["definition"] and not HAS_VALUE.search(said["definition"])
        if has_none and self.present.count("count(*)", f"(SELECT FROM {table.name} LIMIT 1) AS t") == 1:
            self._fail(f"{table.name} has rows, and {plain(said['name'])} comes back NOT NULL without a value for them")

    def _set_not_null(self, table: Table, said: Said) -> None:
        column = self.present.column(table, said["name"])
        if column and (table.oid, column) not in self._filled:
            self._fail_counted(
                table, said, f"{quoted(column)} IS NULL", f"{table.name}.{column} becomes NOT NULL, and is NULL in {{}}"
            )

    def _convert(self, table: Table, said: Said) -> None:
        """Count the values that change when they are converted there and back."""
        column = self.present.column(table, said["name"])
        if column is None:
            return
        (old, _), new, using = self.present.type(table, column), said["type"], said["using"]
        value, shown = quoted(plain(said["name"])), f"{table.name}.{column}"
        rows = self.present.rows(table, said["table"])
        converted = f"({using or value})::{new}"
        if labels := self._enums.get(plain(new)):
            self._fail_counted(
                table,
                said,
                f"({using or value})::text NOT IN ({labels})",
                f"{{}} of {shown} has no such value in {new}",
            )
            return
        number = self.present.count("count(*)", rows, f"(({converted})::{old})::text IS DISTINCT FROM {value}::text")
        if isinstance(number, Error):
            again = self.present.count(f"count({converted})", rows)
            if isinstance(again, Error) and (locks.sqlstate(again) or "").startswith(CANNOT_BE_CONVERTED):
                self._fail(f"{shown} cannot be converted from {old} to {new}: {type(again.__cause__).__name__}")
            else:
                self._lose(f"converts {shown} from {old} to {new}: what changes is not known ({summary(number)})")
        elif number and not using and IS_CUT.match(new):
            self._fail(f"{counted(number, 'value')} of {shown} would be too long for {new}")
        elif number:
            self._lose(f"changes {counted(number, 'value')} of {shown}, from {old} to {new}")
        if new != old and self.present.is_viewed(table, column):
            self._fail(f"the type of {shown} cannot be altered, because a view uses it")

    # Constraints

    def _add_unique(self, table: Table, said: Said) -> None:
        columns, where = said["columns"], said["condition"]
        twice = (
            f"(SELECT FROM {self.present.rows(table, said['table'])} WHERE ({columns}) IS NOT NULL"
            f"{where and f' AND ({where})'} GROUP BY {columns} HAVING count(*) > 1 LIMIT 1) AS t"
        )
        if self.present.count("count(*)", twice) == 1:
            self._fail(f"{table.name} has several rows with the same " + columns.replace('"', ""))

    def _add_check(self, table: Table, said: Said) -> None:
        condition = said["condition"]
        self._fail_counted(table, said, f"NOT {condition}", f"{{}} of {table.name} would break the check {condition}")

    def _add_key(self, table: Table, said: Said) -> None:
        if target := self.present.table(said["target"]):
            columns, keys = said["columns"], said["keys"]
            there = f"SELECT {keys} FROM {self.present.rows(target, said['target'])}"  # noqa: S608
            self._fail_counted(
                table,
                said,
                f"({columns}) IS NOT NULL AND ({columns}) NOT IN ({there})",
                f"{{}} of {table.name} would point to what is not in {target.name}",
            )

    # Tables and rows

    def _drop(self, statement: Statement, said: Said) -> None:
        kind, cascades = said["kind"], bool(said["cascade"])
        if kind in CANNOT_BE_TOLD:
            self._not_told(statement)
        elif kind in HOLDS_ROWS | {"view"}:
            for name in said["names"].split(", "):
                self._drop_relation(kind, name, cascades=cascades)
        else:
            for name in said["names"].split(", "):
                self._lose_unless_made(kind, name)
            if cascades:
                self._lose(f"runs {_shown(statement)}: what CASCADE drops is not known")

    def _drop_relation(self, kind: str, name: str, *, cascades: bool) -> None:
        table = self.present.table(name)
        if table is None or self._was_there("table", name):
            return
        if kind in HOLDS_ROWS:
            self._lose_counted("row", table)
        else:
            self._lose_unless_made(kind, name)
        self._lose_dependents(table, "", table.name, cascades=cascades)
        self.present.forget_table(table)

    def _truncate(self, statement: Statement, said: Said) -> None:
        for table in filter(None, map(self.present.table, said["names"].split(", "))):
            self._lose_counted("row", table)
            if said["cascade"] and (others := self.present.pointing(table, "acdnr")):
                self._lose(f"empties with {table.name}: {others}")
            if self._has_triggers or self.present.acts_on_writes(table):
                self._not_told(statement)
            self._is_blurred = True

    def _write(self, statement: Statement, said: Said) -> None:
        """Count the rows of now that a DELETE or an UPDATE finds."""
        if (table := self.present.table(said["name"])) is None:
            return
        condition: str = said.get("condition", "")
        number: int | Error = 1
        if statement.verb != "INSERT":
            number = self.present.count("count(*)", self.present.rows(table, said["name"]), condition)
        acts = self._has_triggers or self.present.acts_on_writes(table)
        if isinstance(number, Error) or (number and acts):
            self._not_told(statement)
        if isinstance(number, Error) or not number or statement.verb == "INSERT":
            return
        if "asked" in said and plain(said["asked"]) == plain(said["column"]):
            column = self.present.column(table, said["asked"]) or ""
            self._filled.add((table.oid, column))
            self._lose(f"fills {counted(number, 'NULL')} of {table.name}.{column}")
            return
        others = self.present.pointing(table, "cdn") if statement.verb == "DELETE" else ""
        did = "loses" if statement.verb == "DELETE" else "writes over"
        with_them = others and f", and what points to them in {others}"
        self._lose(f"{did} {counted(number, 'row')} of {table.name}{with_them}")
        self._is_blurred = True

    def _was_there(self, kind: str, name: str) -> bool:
        """Whether it existed before the migration, so that it stays."""
        return any(
            one.kind == kind and plain(name) in map(plain, filter(None, (one.name, one.table))) for one in self._stays
        )

    # How a loss is noted

    def _lose_unless_made(self, kind: str, name: str) -> None:
        made = {(one.kind, plain(one.name)) for one in self._made or ()}
        if self._made is not None and (kind, plain(name)) not in made and plain(name) not in self._made_back:
            self._lose(f"drops {kind} {name}; the SQL of this migration does not tell whether it made that")

    def _lose_counted(self, noun: str, table: Table, what: str = "count(*)", *, of: str = "") -> None:
        number = self.present.count(what, table.name)
        if isinstance(number, Error):
            self._lose(f"loses {noun}s of {of or table.name}, which could not be counted: {summary(number)}")
        elif number:
            self._lose(f"loses {counted(number, noun)} of {of or table.name}")

    def _fail_counted(self, table: Table, said: Said, condition: str, text: str) -> None:
        """Note that a statement must fail if there are such rows; nothing if they cannot be counted."""
        number = self.present.count("count(*)", self.present.rows(table, said["table"]), condition)
        if number and not isinstance(number, Error):
            self._fail(text.replace("{}", counted(number, "row")))

    def _lose_dependents(self, table: Table, column: str, shown: str, *, cascades: bool) -> None:
        dependents = self.present.dependents(table, column)
        listed = ", ".join(map(str, dependents))
        if dependents and cascades:
            self._lose(f"drops with {shown}: {listed}")
            self.present.forget(dependents)
            self.goes_along.update((one.catalog, one.oid) for one in dependents)
        elif dependents:
            self._fail(f"{shown} cannot be dropped, because {listed} depends on it")

    def _not_told(self, statement: Statement) -> None:
        self.not_told(self._migration, f"runs {_shown(statement)}")

    def _lose(self, text: str, *, must_fail: bool = False) -> None:
        loss = Loss(self._migration, text, must_fail)
        if loss not in self.losses:
            self.losses.append(loss)

    def _fail(self, text: str) -> None:
        """Note that a statement must fail; or may, if earlier statements may change the rows."""
        said = "may fail" if self._is_blurred else "must fail"
        self._lose(f"{said}: {text}", must_fail=not self._is_blurred)


def _shown(statement: Statement) -> str:
    said = " ".join(statement.text.split()).rstrip("; ")
    return said if len(said) <= 80 else f"{said[:79]}…"
