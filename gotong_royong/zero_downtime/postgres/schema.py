"""How does DDL run twice and happen once?

The schema editor here looks before each of Django's statements whether its effect exists already, and then skips the
statement. It compares an existing object with the wanted one: see ``definitions``. So a migration that was killed
anywhere can begin again. Otherwise it executes what Django executes. It does not look at ``RunSQL``.
"""

import functools
import logging
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from django.db import ProgrammingError
from django.db.backends.ddl_references import Statement
from django.db.models import Model

from ..exceptions import DefinitionDiffers
from . import catalog, definitions
from .catalog import Constraint, Index, Part
from .definitions import Mismatch, NotComparable, added, on, plain
from .effects import DROP_INDEX, JournalingEditor

logger = logging.getLogger(__name__)

VALIDATE = "ALTER TABLE %s VALIDATE CONSTRAINT %s"
DROP_INDEX_CONCURRENTLY = "DROP INDEX CONCURRENTLY %s"

# What Django writes elsewhere than in the sql_… attributes of its editor.
FOREIGN_KEY_SUFFIX = "_fk_%(to_table)s_%(to_column)s"
INLINE_FOREIGN_KEY = re.compile(r' CONSTRAINT "[^"]+" REFERENCES .*', re.DOTALL)
COLLATION = re.compile(r'(?P<verb>CREATE|DROP) COLLATION (?P<name>"[^"]+")(?P<definition>[^;]*)')


class SchemaEditor(JournalingEditor):
    """Django's editor with statements that may run again. ``editors`` makes it for a connection.

    A column may differ because an earlier try of this migration altered, renamed or removed it later on. So it raises
    ``DefinitionDiffers`` for a column only at its end.
    """

    checks: dict[str, tuple[Callable[..., str], list[str]]]
    careful = True
    """Whether to look before each statement whether its effect exists."""
    carrying_out: Callable[..., AbstractContextManager[Any]] = nullcontext
    """The context in which an operation runs; it gets the operation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mismatches: list[Mismatch] = []
        self._new_tables: set[str] = set()
        self._rehearsed: list[tuple[Any, Any]] | None = None
        self._adding: tuple[Any, Any] | None = None

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        """Run the deferred statements and raise the mismatches that are left; end the transaction in any case."""
        try:
            if exc_type is None:
                self.run_deferred()
                for mismatch in self._mismatches:
                    mismatch.complain()
        except BaseException as error:
            super().__exit__(type(error), error, error.__traceback__)
            raise
        super().__exit__(exc_type, exc_value, traceback)

    @property
    def settled(self) -> bool:
        """Whether no column differs from the wanted one."""
        return not self._mismatches

    def execute(self, sql: Any, params: Any = ()) -> None:
        """Execute the statement, unless its effect exists already.

        Raises:
            DefinitionDiffers: if an object of that name exists and differs.
        """
        if self._rehearsed is not None:
            self._rehearsed.append((sql, params))
        elif self._is_to_be_looked_at(sql) and self.touches(sql) and (reason := self._done(sql, params)):
            logger.info("skipped: %s", reason)
            self.skip(sql, reason)
        else:
            super().execute(sql, params)

    def run_deferred(self) -> None:
        """Execute the statements that Django defers to the end."""
        while self.deferred_sql:
            self.execute(self.deferred_sql.pop(0), None)

    def add_field(self, model: type[Model], field: Any) -> None:
        self._adding = model, field
        try:
            super().add_field(model, field)
        finally:
            self._adding = None

    def _alter_field(self, model: Any, old_field: Any, new_field: Any, *args: Any) -> None:
        """Alter the field, but drop no foreign key if nothing changes, and make one that an earlier try lost.

        Django drops foreign keys first and makes them again at the end. So a rehearsal tells whether anything changes.
        """
        alter = functools.partial(super()._alter_field, model, old_field, new_field, *args)  # type: ignore[misc]
        if self.collect_sql or not self.careful:
            alter()
            return
        table = self.quote_name(model._meta.db_table)
        had_mismatch = self._settle(table, old_field.column)
        if (old_field.remote_field or old_field.unique) and self._change_nothing(alter):
            logger.info("skipped: %s is already as wanted", new_field)
        else:
            alter()
        if had_mismatch:
            self._mismatch_again(model, new_field)
        if all(field.remote_field and field.db_constraint for field in (old_field, new_field)):
            put_off = (sql for sql in self.deferred_sql if isinstance(sql, Statement))
            if not any(sql.references_column(model._meta.db_table, new_field.column) for sql in put_off):
                self._add_foreign_key(model, new_field)

    def _delete_composed_index(self, model: Any, fields: Any, constraint_kwargs: Any, sql: Any) -> None:
        try:
            super()._delete_composed_index(model, fields, constraint_kwargs, sql)  # type: ignore[misc]
        except ValueError:
            columns = [model._meta.get_field(field).column for field in fields]
            if self.collect_sql or not self.careful or self._constraint_names(model, columns, **constraint_kwargs):  # type: ignore[attr-defined]
                raise
            reason = f"the index of {', '.join(columns)} on {model._meta.db_table} is already gone"
            logger.info("skipped: %s", reason)
            self.skip(sql, reason)

    def _rehearse(self, action: Callable[[], object]) -> list[tuple[Any, Any]]:
        """Return the statements of the action, and their parameters, without executing them."""
        self._rehearsed = []
        try:
            action()
            return self._rehearsed
        finally:
            self._rehearsed = None

    def _change_nothing(self, action: Callable[[], object]) -> bool:
        """Whether each statement of the action is done, or drops what another one makes again.

        If so, execute those that cannot be checked and may run again, such as comments.
        """
        mismatches, put_off = self._mismatches, list(self.deferred_sql)
        statements = self._rehearse(action)
        checked = [statement for statement in statements if self._check(statement[0])]
        made = {str(sql.parts["name"]) for sql, _ in checked if self._check(sql) in MAKING}
        try:
            done = all(
                (self._check(sql) in DROPPING and str(sql.parts["name"]) in made) or self._done(sql, params)
                for sql, params in checked
            )
        except (DefinitionDiffers, ProgrammingError):
            done = False
        if not done:
            self._mismatches, self.deferred_sql = mismatches, put_off
            return False
        for statement in statements:
            if statement not in checked:
                super().execute(*statement)
            else:
                self.skip(statement[0], "it is already as wanted")
        return True

    def _mismatch_again(self, model: Any, field: Any) -> None:
        """Compare the field's column with one that is added now."""
        put_off = list(self.deferred_sql)
        (adding, *_) = self._rehearse(functools.partial(super().add_field, model, field))
        self._adding, self.deferred_sql = (model, field), put_off
        self._done(*adding)
        self._adding = None

    def _is_to_be_looked_at(self, sql: Any) -> bool:
        """Whether to check it; if not careful only ``DROP INDEX IF EXISTS``, which does not fail where it is done."""
        return not self.collect_sql and (self.careful or self._check(sql) is SchemaEditor._no_index)

    def _check(self, sql: Any) -> Callable[..., str] | None:
        return self.checks.get(getattr(sql, "template", ""), (None,))[0]

    def _done(self, sql: Any, params: Any) -> str:
        """Return which effect of the statement exists already; an empty text means: execute it.

        A statement that the role may not compare is executed, and PostgreSQL raises the error.
        """
        with suppress(NotComparable):
            if check := self._check(sql):
                parts = [str(sql.parts[part]) for part in self.checks[sql.template][1]]
                known_to_be_missing = check in MAKING and parts[0] in self._new_tables and "CONCURR" not in sql.template
                return "" if known_to_be_missing else check(self, sql, params, *parts)
            if match := COLLATION.fullmatch(str(sql)):
                return self._collation(**match.groupdict())
        return ""

    # Does the object that a statement makes exist, and is it the wanted one?

    def _table(self, sql: Any, params: Any, table: str) -> str:
        if catalog.table_here(self.connection, table) is None:
            self._new_tables.add(table)
            return ""
        self._compare("table", table, "", sql, added(self.connection, sql, params))
        return f"table {plain(table)} is already there"

    def _column(self, sql: Any, params: Any, table: str, name: str) -> str:
        if self._adding is None or catalog.column(self.connection, table, name) is None:
            return ""
        model, field = self._adding
        definition = INLINE_FOREIGN_KEY.sub("", sql.parts["definition"])
        wanted = added(self.connection, sql, params, like=table, without=name, definition=definition)
        # Django drops the default of a field right after the column is added; a db_default stays.
        same = self._compare("column", table, name, sql, wanted, any_default=not field.has_db_default())
        if same and field.remote_field and field.db_constraint:
            self._add_foreign_key(model, field)
        return f"column {on(table, name)} is already there"

    def _index(self, sql: Any, params: Any, table: str, name: str) -> str:
        found = self._drop_invalid_index(table, name)
        if found is None:
            return ""
        if not found.here:
            raise DefinitionDiffers("index", plain(name), found.definition, str(sql))
        self._compare("index", table, name, sql, added(self.connection, sql, params, like=table))
        return f"index {on(table, name)} is already there"

    def _constraint(self, sql: Any, params: Any, table: str, name: str = "") -> str:
        name = name or sql.parts["constraint"].parts["name"]
        found = catalog.constraint(self.connection, table, name)
        if found is None:
            return ""
        self._compare("constraint", table, name, sql, added(self.connection, sql, params, like=table))
        self._validate(table, found, sql)
        return f"constraint {on(table, name)} is already there"

    def _foreign_key(self, sql: Any, params: Any, table: str, name: str) -> str:
        found = catalog.constraint(self.connection, table, name)
        if found is None:
            return ""
        self._accept_foreign_key(found, sql, table)
        return f"foreign key {on(table, name)} is already there"

    def _add_foreign_key(self, model: Any, field: Any) -> None:
        """Make the foreign key of the field if its column has none of any name."""
        sql = self._create_fk_sql(model, field, FOREIGN_KEY_SUFFIX)  # type: ignore[attr-defined]
        table, columns = str(sql.parts["table"]), sql.parts["column"].columns
        found = [key for key in catalog.constraints(self.connection, table) if key.target and key.columns == columns]
        if not found:
            super().execute(sql, None)
        for key in found:
            self._accept_foreign_key(key, sql, table)

    def _collation(self, verb: str, name: str, definition: str) -> str:
        found = catalog.collation(self.connection, name)
        if verb == "DROP":
            return _gone(found, "collation", "", name)
        if found is None:
            return ""
        wanted = definitions.collation(self.connection, definition)
        if found != wanted:
            raise DefinitionDiffers("collation", plain(name), found, str(wanted))
        return f"collation {plain(name)} is already there"

    # Is what a statement changes as wanted?

    def _altered_column(self, sql: Any, params: Any, table: str, changes: str) -> str:
        """Alter the columns of an empty table again without a comparison."""
        name = changes.split('"')[1]  # ALTER COLUMN "name" …
        found = catalog.column(self.connection, table, self.quote_name(name))
        if found is None:
            execute = functools.partial(super().execute, sql, params)  # raises PostgreSQL's error
            self._mismatches = [*self._mismatches, Mismatch(table, name, execute)]
            return f"column {on(table, name)} does not exist, which is an error unless the migration removes it"
        if found.empty or added(self.connection, sql, params, like=table):
            return ""
        return f"column {on(table, name)} is already as wanted"

    def _filled_column(self, sql: Any, params: Any, table: str, name: str) -> str:
        found = catalog.column(self.connection, table, name)
        return f"column {on(table, name)} already has no NULL" if found is None or found.not_null else ""

    def _identity(self, sql: Any, params: Any, table: str, name: str) -> str:
        found, wanted = catalog.column(self.connection, table, name), " ADD " in sql.template
        return f"column {on(table, name)} is already as wanted" if found and found.identity is wanted else ""

    def _renamed_table(self, sql: Any, params: Any, old: str, new: str) -> str:
        return self._renamed("table", functools.partial(catalog.table_here, self.connection), "", old, new)

    def _renamed_column(self, sql: Any, params: Any, table: str, old: str, new: str) -> str:
        return self._renamed("column", functools.partial(catalog.column, self.connection, table), table, old, new)

    def _renamed_index(self, sql: Any, params: Any, table: str, old: str, new: str) -> str:
        return self._renamed("index", functools.partial(catalog.index, self.connection, table), table, old, new)

    def _renamed(self, kind: str, look: Callable[[str], object], table: str, old: str, new: str) -> str:
        if look(new) is None:
            return ""
        if look(old) is not None:
            raise DefinitionDiffers(kind, on(table, new), f"both {plain(old)} and {plain(new)}", f"{old} as {new}")
        return f"{kind} {on(table, new)} already has its name"

    # Is what a statement drops gone?

    def _no_table(self, sql: Any, params: Any, table: str) -> str:
        self._settle(table)
        return _gone(catalog.table_here(self.connection, table), "table", table)

    def _no_column(self, sql: Any, params: Any, table: str, name: str) -> str:
        self._settle(table, name)
        return _gone(catalog.column(self.connection, table, name), "column", table, name)

    def _no_index(self, sql: Any, params: Any, table: str, name: str) -> str:
        return _gone(catalog.index(self.connection, table, name), "index", table, name)

    def _no_constraint(self, sql: Any, params: Any, table: str, name: str) -> str:
        return _gone(catalog.constraint(self.connection, table, name), "constraint", table, name)

    # How these checks compare

    def _drop_invalid_index(self, table: str, name: str) -> Index | None:
        """Return the index; drop it and return None if a failed build left it invalid.

        That takes SHARE UPDATE EXCLUSIVE on the table, or ACCESS EXCLUSIVE in a transaction
        (https://www.postgresql.org/docs/current/sql-dropindex.html).
        """
        found = catalog.index(self.connection, table, name)
        if found is None or not found.abandoned or not found.here:
            return found
        logger.info("dropping index %s, which a failed build left invalid", on(table, name))
        drop = DROP_INDEX if self.connection.in_atomic_block else DROP_INDEX_CONCURRENTLY
        super().execute(drop % found.name, None)
        return None

    def _validate(self, table: str, found: Constraint, sql: Any) -> None:
        """Validate a constraint that is NOT VALID and wanted valid. Takes SHARE UPDATE EXCLUSIVE on the table."""
        if not found.valid and "NOT VALID" not in getattr(sql, "tail", ""):
            super().execute(VALIDATE % (table, self.quote_name(found.name)), None)

    def _compare(self, kind: str, table: str, name: str, sql: Any, wanted: list[Part], **how: bool) -> bool:
        """Compare the wanted parts with the table's; return whether no column differs."""
        mismatches = definitions.compare(self.connection, kind, table, name, sql, wanted, **how)
        self._mismatches = [*self._mismatches, *mismatches]
        return not mismatches

    def _accept_foreign_key(self, found: Constraint, sql: Any, table: str) -> None:
        """Compare only columns and target: ON DELETE and DEFERRABLE may be set elsewhere."""
        target = catalog.table(self.connection, str(sql.parts["to_table"]))
        wanted = sql.parts["column"].columns, target, sql.parts["to_column"].columns
        if (found.columns, found.target, found.target_columns) != wanted:
            raise DefinitionDiffers("foreign key", on(table, found.name), found.definition, str(sql))
        self._validate(table, found, sql)

    def _settle(self, table: str, column: str = "") -> bool:
        """Forget the mismatches of a column, or of the whole table; return whether there was one."""
        settled = [one for one in self._mismatches if one.table == table and plain(column) in ("", one.column)]
        self._mismatches = [one for one in self._mismatches if one not in settled]
        return bool(settled)


def _gone(found: object, kind: str, table: str, name: str = "") -> str:
    return "" if found else f"{kind} {on(table, name)} is already gone"


MAKING = (SchemaEditor._index, SchemaEditor._constraint, SchemaEditor._foreign_key)
DROPPING = (SchemaEditor._no_index, SchemaEditor._no_constraint)
