"""What does each statement of Django's schema editor change?

The editor writes the statement into the journal before it executes it. Afterwards it writes what the statement did not
change: an ``ALTER COLUMN`` or a ``COMMENT`` may set the old value, an index may be dropped and made again as it was.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

from ..exceptions import LeftOpen, StillNeeded, ZeroDowntimeError
from . import catalog, definitions, locks, statements
from .journal import ALONG, Journal
from .statements import Object

RENAMED = "name of "
ASPECTS = ("TYPE", "NULL", "DEFAULT", "identity", "comment")
DROP_CONSTRAINT, DROP_INDEX = "ALTER TABLE %s DROP CONSTRAINT %s", "DROP INDEX %s"

UNKNOWN = "?"
THERE, COMPARABLE = " is already there", {"table", "column", "index"}
Look = dict[Object, str | None]


def dependents(connection: BaseDatabaseWrapper, object: Object) -> list[catalog.Dependent]:
    """Return what CASCADE drops with the object, if it is an existing table or column."""
    table = object.table or object.name if object.kind in {"table", "column"} else ""
    oid = catalog.table(connection, table) if table else None
    column = definitions.plain(object.name) if object.kind == "column" else ""
    return catalog.dependents(connection, oid, column) if oid else []


class JournalingEditor(DatabaseSchemaEditor):
    """Django's editor with a journal; it can leave objects alone."""

    journal: Journal | None = None
    may_touch: Callable[[tuple[Object, ...]], bool] | None = None
    """Whether to execute a statement that concerns these objects; None for any statement."""
    agreed: Collection[tuple[str, int]] | None = None
    """The dependents that the user lets CASCADE drop, by catalog table and OID; None if nobody asked the user."""
    report: Callable[..., object] = staticmethod(lambda event, **facts: None)
    kinds: dict[str, tuple[str, list[str]]]
    """For each template of a statement the kind of its object, and the parts of the statement that name it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_out: set[Object | None] = set()
        """What it may not touch; None stands for unknown objects."""
        self._made: set[Object] = set()
        self._open: list[tuple[str, tuple[Object, ...]]] = []
        """The statements in the open transaction, if SQL began it without Django."""
        self._gone: Look = {}

    def execute(self, sql: Any, params: Any = ()) -> None:
        """Execute the statement unless ``may_touch`` forbids it; write it into the journal first.

        Raises:
            StillNeeded: if its CASCADE would drop what nobody agreed to.
        """
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
        there = self._there_already(text, objects) if is_plain else {}
        for object, reason in there.items():
            self.journal.skipped(reason, (object,) if object else ())
            if object and object.kind in COMPARABLE and reason.endswith(THERE):
                skipped = "existed already, so IF NOT EXISTS skipped it. Its definition was not compared"
                self.report("note", text=f"{object} {skipped}.")
        if objects and there.keys() == set(objects):
            return
        objects = () if None in there else tuple(object for object in objects if object not in there)
        concerned = objects
        if "CASCADE" in text and statements.drops(text):
            if not (along := self._goes_along(objects, is_said=is_plain)):
                sql = sql if is_plain else text.removesuffix(" CASCADE")  # a view that somebody makes now must survive
            concerned = (*objects, *along)
        is_lasting = not self.connection.in_atomic_block and statements.is_patient(text)
        settable, standing = self._settable(objects), self._look(objects) if is_lasting else {}
        if statements.drops(text):
            self._gone |= self._remakable(objects)
        self.journal.executing(text, concerned)
        try:
            super().execute(sql, params)
        except Error:
            if objects or not is_lasting:
                self.journal.failed(text, concerned)
            if left := self._left_by_a_failure(standing):
                self.journal.executing(text, left)
            raise
        is_open = not self.connection.in_atomic_block and locks.runs_in_transaction(self.connection)
        self._open = [*self._open, (text, objects)] if is_open else []
        if not statements.drops(text):
            self._made.update(object for object in objects if object.kind in {"table", "column"})
            self._say_remade(self.journal, text, self._gone.keys() & objects)
        if settable:
            self._say_unchanged(self.journal, text, settable)

    @contextmanager
    def leaving_no_transaction(self) -> Iterator[None]:
        """Roll back a transaction that the block leaves open, also after an error. Ignore Django's own.

        Raises:
            LeftOpen: if the block ended without an error and left a transaction open.
        """
        try:
            yield
        except Exception:
            self._end_open()
            raise
        if self._end_open():
            raise LeftOpen

    def _end_open(self) -> bool:
        """Roll back a transaction that SQL began and did not end; return whether there was one."""
        if self.collect_sql or self.connection.in_atomic_block or not locks.runs_in_transaction(self.connection):
            return False
        with suppress(Error, psycopg.Error):
            self.connection.connection.rollback()
            self.connection.set_autocommit(True)
        if self.journal:
            for text, objects in self._open:
                self.journal.failed(text, objects)
        self._open = []
        return True

    def _goes_along(self, objects: tuple[Object, ...], *, is_said: bool) -> list[Object]:
        """Return what CASCADE drops with the tables and columns, and report it.

        Args:
            is_said: whether the author wrote the CASCADE, and not Django.

        Raises:
            StillNeeded: if the user did not agree to it; or if nobody asked the user, Django wrote the CASCADE, and it
                drops more than foreign keys.
        """
        along = list[Object]()
        for object in objects:
            found = dependents(self.connection, object)
            is_grave = not is_said and any(one.catalog != "pg_constraint" for one in found)
            if is_grave if self.agreed is None else any((one.catalog, one.oid) not in self.agreed for one in found):
                raise StillNeeded(str(object), [one.description for one in found])
            for one in found if self.agreed is None else ():
                self.report("note", text=f"{one.description} goes with {object}, on which it depends.")
            along += [Object(ALONG, "", one.description) for one in found]
        return along

    def _there_already(self, sql: str, objects: tuple[Object, ...]) -> dict[Object | None, str]:
        """Return the objects that the SQL need not make or drop, after an earlier try or by IF [NOT] EXISTS, and why.

        The key is None if some of its objects are unknown.
        """
        is_repeated = self.journal is not None and self.journal.may_be_done(sql)
        is_conditional = statements.has_condition(sql)
        if not is_repeated and not is_conditional:
            return {}
        changes = [change for one in statements.split(sql) for change in one.changes]
        makes = dict(changes)
        look = {object: self.look_at(*object, is_new=is_made) for object, is_made in makes.items()}
        done = {one for one, is_made in makes.items() if look[one] != UNKNOWN and (look[one] is not None) is is_made}
        if is_repeated and objects and len(changes) == len(makes) and done.issuperset(objects):
            return {object: f"{object} is already as an earlier try has made it" for object in objects}
        if not is_conditional or (changes and len(changes) == 2 * len(makes)):  # what is dropped is made anew
            return {}
        if len(objects) != len(makes) or not objects or UNKNOWN in look.values():
            return {None: f"what existed already is not known: {' '.join(sql.split())[:100]}"}
        return {one: f"{one}{THERE if makes[one] else ' is already gone'}" for one in objects if one in done}

    def _look(self, objects: Iterable[Object]) -> Look:
        return {object: self.look_at(*object) for object in objects}

    def look_at(self, kind: str, table: str, name: str, *, is_new: bool = False) -> str | None:
        """Return the catalog's description of an object: None if it does not exist, UNKNOWN if that cannot be told.

        Args:
            is_new: whether to look only where CREATE would make it, and to ignore an invalid index.
        """
        if "&" in table + name:  # no function of PostgreSQL reads U&"…"
            return UNKNOWN
        aspect = kind.partition(" ")[0]
        if aspect in ASPECTS:
            return catalog.aspects(self.connection, table, name).get(aspect)
        if kind == "index" and table:
            index = catalog.index(self.connection, table, name)
            return index.definition if index and (index.valid or not is_new) else None
        if kind in {"column", "constraint"} and catalog.table(self.connection, table) is None:
            return UNKNOWN
        if kind == "column":
            return name if catalog.column(self.connection, table, name) else None
        if kind == "constraint":
            constraint = catalog.constraint(self.connection, table, name)
            return constraint.definition if constraint else None
        return catalog.named(self.connection, kind, name, table, is_new=is_new)

    def _left_by_a_failure(self, before: Look) -> tuple[Object, ...]:
        """Return what a failed statement made or dropped; if the session is lost, what it may have made."""
        try:
            after = self._look(before)
        except (Error, ZeroDowntimeError):  # the session is lost, or the watchdog has given its verdict
            return tuple(object for object, there in before.items() if there is None)
        return tuple(object for object in after if after[object] != before[object])

    def _say_remade(self, journal: Journal, text: str, objects: set[Object]) -> None:
        for object, definition in self._remakable(objects).items():
            if definition == self._gone.pop(object):
                journal.failed(text, (object,))  # what made it
                journal.failed(text, (object,))  # and what dropped it
                journal.skipped(f"{object} is already as wanted", (object,))

    def _say_unchanged(self, journal: Journal, text: str, before: Look) -> None:
        after = self._look(before)
        if unchanged := [object for object in before if before[object] == after[object]]:
            journal.failed(text, tuple(before))
            if changed := tuple(object for object in before if object not in unchanged):
                journal.executing(text, changed)
            for object in unchanged:
                journal.skipped(f"{object} is already as wanted", (object,))

    def _remakable(self, objects: Iterable[Object]) -> Look:
        """Return the catalog's definitions of the existing indexes and constraints among them."""
        look = self._look(one for one in objects if one.kind in {"index", "constraint"} and one.table)
        return {object: definition for object, definition in look.items() if definition not in {None, UNKNOWN}}

    def _settable(self, objects: Iterable[Object]) -> Look:
        """Return the catalog's descriptions of the column aspects among them, except those of new columns."""
        return self._look(
            one
            for one in objects
            if one.kind.partition(" ")[0] in ASPECTS
            and self._made.isdisjoint({Object("table", one.table), Object("column", one.table, one.name)})
        )

    def touches(self, sql: Any) -> bool:
        """Whether the statement may be executed."""
        return self.may_touch is None or self.may_touch(self.objects_of(sql))

    def skip(self, sql: Any, reason: str) -> None:
        """Skip the statement, and write the reason into the journal."""
        if self.journal:
            self.journal.skipped(reason, self.objects_of(sql))

    def objects_of(self, sql: Any) -> tuple[Object, ...]:
        """Return what the statement makes, changes or drops; nothing if that is unknown."""
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
        """Drop the existing indexes and constraints among them.

        Takes ACCESS EXCLUSIVE on their tables
        (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).
        """
        for kind, table, name in objects:
            if kind == "constraint" and catalog.constraint(self.connection, table, name):
                self.execute(DROP_CONSTRAINT % (table, name), None)
            elif kind == "index" and catalog.index(self.connection, table, name):
                self.execute(DROP_INDEX % name, None)
