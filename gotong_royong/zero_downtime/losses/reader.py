"""What do the statements of a way back destroy of what is there now, and which of them must fail?"""

from collections.abc import Callable
from typing import NamedTuple

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration

from gotong_royong.zero_downtime import locks
from gotong_royong.zero_downtime.exceptions import counted, summary
from gotong_royong.zero_downtime.journal import Told
from gotong_royong.zero_downtime.losses import words
from gotong_royong.zero_downtime.losses.present import Present, Table
from gotong_royong.zero_downtime.losses.words import named, parts, plain, quoted
from gotong_royong.zero_downtime.statements import Statement, split


class Loss(NamedTuple):
    """What a step back destroys, or why it must fail, in words."""

    migration: Migration
    text: str
    must_fail: bool = False

    def __str__(self) -> str:
        return self.text


class Reader:
    """Reads the statements of a plan back, one after the other, and tells what is lost.

    Counts row by row, under ACCESS SHARE, and waits for that no longer than the lock timeout.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.losses: list[Loss] = []
        self.present = Present(connection)
        self._filled: set[tuple[int, str]] = set()
        self._is_blurred = False
        """Whether something has been read that may change rows, so that none knows what comes after it."""
        self._migration: Migration
        self._told: Told

    def read(self, migration: Migration, told: Told, said: str) -> None:
        """Read a string of SQL; ``told`` is what the journal tells of the way there."""
        self._migration, self._told = migration, told
        for statement in split(said):
            if statement.verb:
                self._read(statement)

    def not_told(self, migration: Migration, what: str) -> None:
        """Take down what is no SQL, of which nobody can tell what it destroys."""
        self._migration = migration
        self._lose(f"{what}: what is lost cannot be told")
        self._is_blurred = True

    def _read(self, statement: Statement) -> None:
        outline, verb = statement.outline.removesuffix(" ;"), statement.verb
        if match := words.ALTER_TABLE.match(outline):
            self._alter(named(statement, match["name"]), statement)
        elif match := words.DROPS.match(outline):
            does: Callable[[str, bool], None] = {"VIEW": self._drop_view, "TRUNCATE": self._truncate}.get(
                match["what"], self._drop_table
            )
            for name in match["names"].split(" , "):
                does(named(statement, name), outline.endswith(" CASCADE"))
        elif match := words.DELETE.match(outline) or words.UPDATE.match(outline):
            self._write(named(statement, match["name"]), statement)
        elif verb not in words.SAFE or words.DROPS_DATA.match(outline) or self._is_query_that_writes(statement):
            self.not_told(self._migration, f"runs {words.shown(statement)}")
        elif verb == "DROP" and outline.endswith(" CASCADE"):
            self._lose(f"runs {words.shown(statement)}: what goes with it cannot be told")

    def _is_query_that_writes(self, statement: Statement) -> bool:
        if statement.verb not in words.QUERIES:
            return False
        return bool(words.WRITES.search(statement.outline)) or self.present.may_write(words.called(statement))

    def _alter(self, name: str, statement: Statement) -> None:
        table = self.present.table(name)
        for action in words.actions(statement):
            outline = action.outline
            if match := words.RENAME_TABLE.fullmatch(outline):
                self.present.move_table(name, *parts(name)[:-1], plain(named(action, match["new"])))
            elif match := words.SET_SCHEMA.fullmatch(outline):
                self.present.move_table(name, plain(named(action, match["schema"])), plain(name))
            elif table is not None:
                self._alter_one(table, action, outline)

    def _alter_one(self, table: Table, action: Statement, outline: str) -> None:
        if match := words.RENAME_COLUMN.fullmatch(outline):
            self.present.rename_column(table, named(action, match["old"]), named(action, match["new"]))
        elif match := words.DROP_CONSTRAINT.match(outline):
            self.present.forget_constraint(table, named(action, match["name"]))
        elif match := words.DROP_COLUMN.match(outline):
            self._drop_column(table, named(action, match["name"]), outline.endswith(" CASCADE"))
        elif match := words.ADD_COLUMN.match(outline):
            self._add_column(table, named(action, match["name"]), outline)
        elif match := words.ALTER_TYPE.match(outline):
            self._alter_type(table, named(action, match["name"]), action)
        elif match := words.SET_NOT_NULL.fullmatch(outline):
            self._set_not_null(table, named(action, match["name"]))
        elif match := words.UNIQUE.match(outline):
            self._add_unique(table, [named(action, name) for name in match["columns"].strip().split(" , ")])
        elif words.CHECK.match(outline) and not outline.endswith(" NOT VALID"):
            self._add_check(table, words.checked(action))

    # Columns

    def _drop_column(self, table: Table, name: str, cascades: bool) -> None:
        column = self.present.column(table, name)
        self.present.forget_column(table, name)
        if column is None or self._was_there("column", name):
            return
        if not self.present.is_generated(table, column):
            self._lose_counted("loses", "value", table, f"count({quoted(column)})", of=f"{table.name}.{column}")
        self._lose_dependents(table, column, f"{table.name}.{column}", cascades)

    def _add_column(self, table: Table, name: str, outline: str) -> None:
        has_none = " NOT NULL" in outline and not words.HAS_VALUE.search(outline)
        if has_none and self.present.count(f"SELECT count(*) FROM (SELECT FROM {table.name} LIMIT 1) AS t") == 1:  # noqa: S608
            self._fail(f"{table.name} has rows, and {plain(name)} comes back NOT NULL without a value for them")

    def _set_not_null(self, table: Table, name: str) -> None:
        column = self.present.column(table, name)
        if column is None or (table.oid, column) in self._filled:
            return
        number = self.present.count(f"SELECT count(*) FROM {table.name} WHERE {quoted(column)} IS NULL")  # noqa: S608
        if not isinstance(number, Error) and number:
            self._fail(f"{table.name}.{column} may not be NULL then, and is in {counted(number, 'row')}")

    def _alter_type(self, table: Table, name: str, action: Statement) -> None:
        """Convert there and back, and count what is not what it was."""
        column = self.present.column(table, name)
        if column is None:
            return
        old, (new, using) = self.present.type(table, column), words.conversion(action)
        value, shown = quoted(plain(name)), f"{table.name}.{column}"
        rows = f"FROM (SELECT {quoted(column)} AS {value} FROM {table.name}) AS t"  # noqa: S608
        converted = f"({using or value})::{new}"
        number = self.present.count(
            f"SELECT count(*) {rows} WHERE (({converted})::{old})::text IS DISTINCT FROM {value}::text"  # noqa: S608
        )
        if isinstance(number, Error):
            again = self.present.count(f"SELECT count({converted}) {rows}")
            if isinstance(again, Error) and (locks.sqlstate(again) or "").startswith(words.CANNOT_BE_CONVERTED):
                self._fail(f"{shown} cannot be converted from {old} to {new}: {type(again.__cause__).__name__}")
            else:
                self._lose(f"converts {shown} from {old} to {new}: what changes cannot be told ({summary(number)})")
        elif number and not using and words.IS_CUT.match(new):
            self._fail(f"{counted(number, 'value')} of {shown} would be too long for {new}")
        elif number:
            self._lose(f"changes {counted(number, 'value')} of {shown}, from {old} to {new}")
        if new != old and self.present.is_viewed(table, column):
            self._fail(f"the type of {shown} cannot be altered, for a view shows it")

    def _add_unique(self, table: Table, names: list[str]) -> None:
        columns = [self.present.column(table, name) for name in names]
        if None in columns:
            return
        listed = ", ".join(quoted(column) for column in columns if column)
        rows = f"SELECT FROM {table.name} WHERE ({listed}) IS NOT NULL GROUP BY {listed} HAVING count(*) > 1 LIMIT 1"
        if self.present.count(f"SELECT count(*) FROM ({rows}) AS t") == 1:  # noqa: S608
            self._fail(f"{table.name} has several rows with the same {', '.join(map(plain, names))}")

    def _add_check(self, table: Table, condition: str) -> None:
        if not self.present.has_renamed(table, table.name):
            number = self.present.count(f"SELECT count(*) FROM {table.name} WHERE NOT {condition}")  # noqa: S608
            if number and not isinstance(number, Error):
                self._fail(f"{counted(number, 'row')} of {table.name} would break the check {condition}")

    # Tables and rows

    def _drop_table(self, name: str, cascades: bool) -> None:
        table = self.present.table(name)
        if table and self._was_there("table", name):
            return
        if table:
            self._lose_counted("loses", "row", table)
            self._lose_dependents(table, "", table.name, cascades)
        self.present.forget_table(name)

    def _drop_view(self, name: str, cascades: bool) -> None:
        if view := self.present.table(name):
            self._lose_dependents(view, "", view.name, cascades)
        self.present.forget_table(name)

    def _truncate(self, name: str, cascades: bool) -> None:
        if table := self.present.table(name):
            self._lose_counted("loses", "row", table)
            if cascades and (others := self._others(table, "acdnr")):
                self._lose(f"empties with {table.name}: {others}")
            self._is_blurred = True

    def _write(self, name: str, statement: Statement) -> None:
        """Count the rows that a DELETE or an UPDATE finds, if what it says holds now, too."""
        if (table := self.present.table(name)) is None:
            return
        if match := words.FILL.match(statement.outline.removesuffix(" ;")):
            asked, filled = named(statement, match["asked"]), named(statement, match["column"])
            column = self.present.column(table, filled) if asked == filled else None
            if column:
                self._filled.add((table.oid, column))
                where = f" WHERE {quoted(column)} IS NULL"
                self._lose_counted("fills", "NULL", table, where=where, of=f"{table.name}.{column}")
                return
        condition = words.condition(statement)
        if condition and self.present.has_renamed(table, name):
            condition = None
        number = self.present.count(f"SELECT count(*) FROM {table.name} {condition or ''}")  # noqa: S608
        if number and (condition is None or isinstance(number, Error)):
            self.not_told(self._migration, f"runs {words.shown(statement)}")
        elif number and not isinstance(number, Error):
            did, others = ("loses", self._others(table, "c")) if statement.verb == "DELETE" else ("writes over", "")
            with_them = f", and what points to them in {others}" if others else ""
            self._lose(f"{did} {counted(number, 'row')} of {table.name}{with_them}")
            self._is_blurred = True

    def _others(self, table: Table, actions: str) -> str:
        return ", ".join(name for name in self.present.pointing(table, actions) if name != table.name)

    def _was_there(self, kind: str, name: str) -> bool:
        """Whether the journal tells that it was there before the migration, so that it stays."""
        wanted = plain(name)
        return any(
            one.kind == kind and wanted in map(plain, filter(None, (one.name, one.table))) for one in self._told.skipped
        )

    # How that is said

    def _lose_counted(
        self, did: str, noun: str, table: Table, what: str = "count(*)", *, where: str = "", of: str = ""
    ) -> None:
        number = self.present.count(f"SELECT {what} FROM {table.name}{where}")  # noqa: S608
        if isinstance(number, Error):
            self._lose(f"{did} {noun}s of {of or table.name}, which could not be counted: {summary(number)}")
        elif number:
            self._lose(f"{did} {counted(number, noun)} of {of or table.name}")

    def _lose_dependents(self, table: Table, column: str, shown: str, cascades: bool) -> None:
        dependents = self.present.dependents(table, column)
        listed = ", ".join(map(str, dependents))
        if dependents and cascades:
            self._lose(f"drops with {shown}: {listed}")
            self.present.forget(dependents)
        elif dependents:
            self._fail(f"{shown} cannot be dropped, for {listed} cannot be without it")

    def _lose(self, text: str, *, must_fail: bool = False) -> None:
        loss = Loss(self._migration, text, must_fail)
        if loss not in self.losses:
            self.losses.append(loss)

    def _fail(self, text: str) -> None:
        """Say that a statement must fail; that it may, if the rows may be others by then."""
        said = "may fail" if self._is_blurred else "must fail"
        self._lose(f"{said}: {text}", must_fail=not self._is_blurred)
