"""What does each statement of Django's schema editor change?

The journal is told before it is executed, and afterwards what it has not changed: an ``ALTER COLUMN`` or a ``COMMENT``
that sets what was set already, an index or a constraint that is dropped and made again as it was.
"""

from collections.abc import Callable, Iterable
from typing import Any

from django.db import Error
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

from gotong_royong.zero_downtime import catalog, definitions, statements
from gotong_royong.zero_downtime.exceptions import StillNeeded, ZeroDowntimeError
from gotong_royong.zero_downtime.journal import Journal
from gotong_royong.zero_downtime.statements import Object

RENAMED = "name of "
ASPECTS = ("TYPE", "NULL", "DEFAULT", "identity", "comment")
REMADE = {"constraint": catalog.constraint, "index": catalog.index}
DROP_CONSTRAINT, DROP_INDEX = "ALTER TABLE %s DROP CONSTRAINT %s", "DROP INDEX %s"


Aspects = dict[Object, str | None]


class JournalingEditor(DatabaseSchemaEditor):
    """Django's, which tells a journal what it executes, and may be told what not to touch."""

    journal: Journal | None = None
    may_touch: Callable[[tuple[Object, ...]], bool] | None = None
    """Whether to execute a statement that concerns these objects; None for any statement."""
    cascades = False
    """Whether somebody has agreed that what depends on a table or a column goes with it."""
    report: Callable[..., object] = staticmethod(lambda event, **facts: None)
    kinds: dict[str, tuple[str, list[str]]]
    """For each template of a statement the kind of its object, and the parts of the statement that name it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_out: set[Object | None] = set()
        """What it was not allowed to touch; None for what is not known."""
        self._made: set[Object] = set()
        self._gone: Aspects = {}

    def execute(self, sql: Any, params: Any = ()) -> None:
        """Execute the statement if it may be, and write down before that it is executed."""
        if self.collect_sql or self.journal is None:
            super().execute(sql, params)
            return
        pieces = [] if params or self.connection.in_atomic_block else statements.pieces(str(sql))
        if len(pieces) > 1:
            for piece in pieces:
                self.execute(piece, params)
            return
        text, objects = str(sql), self.objects_of(sql)
        if not self.touches(sql):
            self.left_out.update(objects or {None})
            return
        is_plain = getattr(sql, "template", "") not in self.kinds
        if is_plain and self._cannot_be_told(text):
            self.journal.skipped(f"what there was already cannot be told: {' '.join(text.split())[:100]}")
            objects = ()
        there = (self._done_by_an_earlier_try(text, objects) or self._there_already(text)) if is_plain else {}
        for object, reason in there.items():
            self.journal.skipped(reason, (object,))
        if there and there.keys() == set(objects):
            return
        objects = tuple(object for object in objects if object not in there)
        if not self.cascades and "CASCADE" in text and statements.drops(text):
            self._look_what_goes_along(objects, is_said=is_plain)
        before, there_before = self._aspects(objects), self._standing(text, objects)
        if statements.drops(text):
            self._gone |= self._definitions(objects)
        is_lasting = not self.connection.in_atomic_block and statements.is_patient(text)
        self.journal.executing(text, objects)
        try:
            super().execute(sql, params)
        except Error:
            if objects or not is_lasting:
                self.journal.failed(text, objects)
            if left := self._left_by_a_failure(text, there_before):
                self.journal.executing(text, left)
            raise
        if not statements.drops(text):
            self._made.update(object for object in objects if object.kind in {"table", "column"})
            self._say_remade(self.journal, text, self._gone.keys() & objects)
        if before:
            self._say_unchanged(self.journal, text, before, self._aspects(objects))

    def _look_what_goes_along(self, objects: tuple[Object, ...], *, is_said: bool) -> None:
        """Tell what CASCADE drops beside the tables and columns.

        Raises:
            StillNeeded: if that is more than foreign keys, and it is Django's CASCADE and not the author's.
        """
        for object in objects:
            table = object.table or object.name if object.kind in {"table", "column"} else ""
            if oid := catalog.table(self.connection, table) if table else None:
                column = definitions.plain(object.name) if object.kind == "column" else ""
                found = catalog.dependents(self.connection, oid, column)
                if not is_said and any(one.catalog != "pg_constraint" for one in found):
                    raise StillNeeded(str(object), [one.description for one in found])
                for one in found:
                    self.report("note", text=f"{one.description} goes with {object}, on which it depends.")

    def _standing(self, sql: str, objects: tuple[Object, ...]) -> dict[Object, bool]:
        """Return which of the objects are there if the statement may leave something where it fails; else nothing."""
        if self.connection.in_atomic_block or not statements.is_patient(sql):
            return {}
        if build := statements.Statement(sql).build:
            return dict.fromkeys(objects, catalog.index(self.connection, build.table, build.name) is not None)
        looked = {one: statements.Condition(one.kind.upper(), one.name, one.table, True) for one in objects}
        return {object: self._is_there(condition) for object, condition in looked.items()}

    def _left_by_a_failure(self, sql: str, before: dict[Object, bool]) -> tuple[Object, ...]:
        """Return what a statement that failed has made or dropped; if nobody can be asked, what it may have made."""
        try:
            after = self._standing(sql, tuple(before))
        except (Error, ZeroDowntimeError):  # the session may be lost, or the watchdog let nothing more pass
            return tuple(object for object, there in before.items() if not there)
        return tuple(object for object in after if after[object] is not before[object])

    def _done_by_an_earlier_try(self, sql: str, objects: tuple[Object, ...]) -> dict[Object, str]:
        """Return all objects and why, if the journal tells that the SQL was executed and they are as it makes them."""
        if not (self.journal and self.journal.may_be_done(sql)):
            return {}
        looked = [statements.Condition(kind.upper(), name, table, False) for kind, table, name in objects]
        wanted = not statements.drops(sql)
        if not all(self._is_there(condition) is wanted for condition in looked):
            return {}
        return {object: f"{object} is already as an earlier try has made it" for object in objects}

    def _there_already(self, sql: str) -> dict[Object, str]:
        """Return what the SQL does not make, or drop, because it says IF NOT EXISTS, or IF EXISTS; and why."""
        if "EXISTS" not in sql.upper():
            return {}
        found: dict[Object, str] = {}
        for statement in statements.split(sql):
            for object, condition in zip(statement.objects, statement.conditions, strict=False):
                if self._is_there(condition) is not condition.must_exist:
                    found[object] = f"{object} is already {'gone' if condition.must_exist else 'there'}"
        return found

    def _cannot_be_told(self, sql: str) -> bool:
        """Whether the SQL says IF EXISTS or IF NOT EXISTS of what cannot be looked up, or not of all that it names."""
        if "EXISTS" not in sql.upper():
            return False
        return any(
            "&" in condition.name + condition.table or self._is_there(condition) is not condition.must_exist
            for statement in statements.split(sql)
            if len(statement.objects) != len(statement.conditions)
            for condition in statement.conditions
        )

    def _is_there(self, condition: statements.Condition) -> bool:
        """Look whether it is there; where that cannot be told, it is as the statement wants it."""
        kind, name, table, must_exist = condition
        if kind == "INDEX" and not must_exist:
            kind = "VALID INDEX"
        if kind == "VALID INDEX" and table:
            index = catalog.index(self.connection, table, name)
            return index is not None and index.valid
        if kind in {"COLUMN", "CONSTRAINT"}:
            look = catalog.column if kind == "COLUMN" else catalog.constraint
            return look(self.connection, table, name) is not None
        there = catalog.named(self.connection, kind, name, is_new=not must_exist)
        return must_exist if there is None else there

    def _say_remade(self, journal: Journal, text: str, objects: set[Object]) -> None:
        for object, definition in self._definitions(objects).items():
            if definition == self._gone.pop(object):
                journal.failed(text, (object,))  # what made it
                journal.failed(text, (object,))  # and what dropped it
                journal.skipped(f"{object} is already as wanted", (object,))

    def _say_unchanged(self, journal: Journal, text: str, before: Aspects, after: Aspects) -> None:
        if unchanged := [object for object in before if before[object] == after[object]]:
            journal.failed(text, tuple(before))
            if changed := tuple(object for object in before if object not in unchanged):
                journal.executing(text, changed)
            for object in unchanged:
                journal.skipped(f"{object} is already as wanted", (object,))

    def touches(self, sql: Any) -> bool:
        """Whether the statement may be executed."""
        return self.may_touch is None or self.may_touch(self.objects_of(sql))

    def skip(self, sql: Any, reason: str) -> None:
        """Leave the statement out, and write down why."""
        if self.journal:
            self.journal.skipped(reason, self.objects_of(sql))

    def objects_of(self, sql: Any) -> tuple[Object, ...]:
        """Return what the statement makes, changes or drops; nothing if that cannot be told."""
        kind, names = self.kinds.get(getattr(sql, "template", ""), ("", []))
        if not kind:
            return statements.objects(str(sql))
        parts = [str(sql.parts[name]) for name in names]
        if names[-1] == "changes":  # ALTER COLUMN "name" …
            column, changes = parts[1].split('"')[1], parts[1].split(" USING ")[0]
            return tuple(Object(f"{word} of column", parts[0], f'"{column}"') for word in ASPECTS if word in changes)
        if kind.startswith(RENAMED):
            return (Object(kind, " ".join(parts[:-2]), " ".join(sorted(parts[-2:]))),)
        if kind == "constraint" and len(parts) == 1:
            parts.append(str(sql.parts["constraint"].parts["name"]))
        return (Object(kind, *parts),)

    def drop_parts(self, objects: Iterable[Object]) -> None:
        """Drop those that are an index or a constraint and are there: of a table that was there before them."""
        for kind, table, name in objects:
            if kind == "constraint" and catalog.constraint(self.connection, table, name):
                self.execute(DROP_CONSTRAINT % (table, name), None)
            elif kind == "index" and catalog.index(self.connection, table, name):
                self.execute(DROP_INDEX % name, None)

    def _definitions(self, objects: Iterable[Object]) -> Aspects:
        """Return how the catalog defines those that are an index or a constraint and are there."""
        looked = {
            object: REMADE[object.kind](self.connection, object.table, object.name)
            for object in objects
            if object.kind in REMADE and object.table
        }
        return {object: found.definition for object, found in looked.items() if found}

    def _aspects(self, objects: tuple[Object, ...]) -> Aspects:
        """Return what the catalog says of those that can be set to what they are, unless they are made just now."""
        told: Aspects = {}
        for object in objects:
            aspect = object.kind.partition(" ")[0]
            made = {Object("table", object.table), Object("column", object.table, object.name)}
            if aspect in ASPECTS and self._made.isdisjoint(made):
                told[object] = catalog.aspects(self.connection, object.table, object.name).get(aspect)
        return told
