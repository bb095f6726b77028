"""What is the safe form of a statement that Django writes?

An operation runs into an editor that only collects its statements. The form of each is found by its template. A form
may run again, and none keeps readers and writers waiting while it reads a table.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import split_identifier
from psycopg.sql import Literal

from ..postgres.editors import schema_editor_class
from ..stages import Stage

LONGEST_NAME = 63
NULL = re.compile(r'ALTER COLUMN (?P<column>"(?:[^"]|"")+") (?P<verb>SET|DROP) NOT NULL')
DEFAULT = re.compile(r'ALTER COLUMN "(?:[^"]|"")+" (?P<verb>SET|DROP) DEFAULT(?!.*, ALTER COLUMN)')


class Unknown(Exception):
    """A statement has no safe form, or only the catalog knows the name that it needs."""


class Safe(NamedTuple):
    """The statements in place of one of Django's, and the stage in which they break no running code."""

    sql: list[str]
    stage: Stage
    made: tuple[str, str] | None = None
    """The kind and the name of the index or constraint that they make."""
    as_is: bool = False
    """Whether they are what Django writes."""


def safe(
    connection: BaseDatabaseWrapper,
    run: Callable[[Any], object],
    names: dict[str, str] | None = None,
    there: Iterable[tuple[str, str]] | None = None,
) -> list[Safe]:
    """Return the safe forms of what ``run`` does with a schema editor.

    Args:
        names: other names for constraints, by the names that Django gives them.
        there: as for ``collected``.

    Raises:
        Unknown: if one statement has none, or as ``collected`` does.
    """
    editor = schema_editor_class(connection.SchemaEditorClass)
    forms = {getattr(editor, f"sql_{name}", None): form for name, form in FORMS.items()}
    found = []
    for sql, text in collected(connection, run, there):
        form = forms.get(getattr(sql, "template", None))
        if form is None:
            raise Unknown
        found.append(form(text, {name: str(part) for name, part in sql.parts.items()}, names or {}))
    return found


def collected(
    connection: BaseDatabaseWrapper, run: Callable[[Any], object], there: Iterable[tuple[str, str]] | None = None
) -> list[tuple[Any, str]]:
    """Return the statements that ``run`` gives to a schema editor, and their texts. Asks no database.

    Args:
        there: the kinds and names of what the columns have now, if that is known.

    Raises:
        Unknown: if Django looks for a name and it is not known what is there.
    """
    statements: list[tuple[Any, str]] = []

    def execute(self: Any, sql: Any, params: Any = ()) -> None:
        text = str(sql) % tuple(Literal(value).as_string() for value in params) if params else str(sql)
        statements.append((sql, text))

    def names_there(self: Any, *_: Any, **wanted: Any) -> list[str]:
        if there is None:
            raise Unknown
        return [name[1:-1].replace('""', '"') for kind, name in there if wanted.get(kind)]

    def quote_value(self: Any, value: Any) -> str:
        return Literal(value).as_string().strip()

    ours = {"execute": execute, "_constraint_names": names_there, "quote_value": quote_value, "careful": False}
    editor = type("Collecting", (schema_editor_class(connection.SchemaEditorClass),), ours)
    with editor(connection, collect_sql=True, atomic=False) as collector:
        run(collector)
    return statements


def sql_of(forms: Iterable[Safe]) -> list[str]:
    """Return all statements of the forms."""
    return [statement for form in forms for statement in form.sql]


Parts = dict[str, str]
Names = dict[str, str]


def _index(text: str, parts: Parts, names: Names) -> Safe:
    is_unique = text.startswith("CREATE UNIQUE")
    text = re.sub(r"^CREATE (UNIQUE )?INDEX", r"CREATE \1INDEX CONCURRENTLY IF NOT EXISTS", text)
    return Safe([text], Stage.POST_DEPLOY if is_unique else Stage.PRE_DEPLOY, ("index", parts["name"]))


def _no_index(text: str, parts: Parts, names: Names) -> Safe:
    return Safe([f"DROP INDEX CONCURRENTLY IF EXISTS {parts['name']}"], Stage.POST_DEPLOY)


def _unique(text: str, parts: Parts, names: Names) -> Safe:
    table, name = parts["table"], names.get(parts["name"], parts["name"])
    index = plain_name(name, "zd")  # USING INDEX renames it
    nulls = parts.get("nulls_distinct", "")
    return Safe(
        [
            f"CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {table} ({parts['columns']}){nulls}",
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, "
            f"ADD CONSTRAINT {name} UNIQUE USING INDEX {index}{parts['deferrable']}",
        ],
        Stage.POST_DEPLOY,
        ("unique", name),
    )


def plain_name(*names: str) -> str:
    """Return the quoted name that PostgreSQL would make of these: it shortens the longest but for the last.

    Args:
        names: of a table or a constraint, of a column, and what it is for; some may be quoted or have a schema.
    """
    *parts, end = (split_identifier(name)[1].strip('"') for name in names)
    while len("_".join([*parts, end])) > LONGEST_NAME:
        longest = max(reversed(range(len(parts))), key=lambda number: len(parts[number]))
        parts[longest] = parts[longest][:-1]
    return f'"{"_".join([*parts, end])}"'


def checked(table: str, name: str, definition: str) -> list[str]:
    """Return the statements that add a check or a foreign key, and then look at the rows without a lock in the way."""
    return [
        f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} {definition} NOT VALID",
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}",
    ]


def _constraint(text: str, parts: Parts, names: Names) -> Safe:
    definition = text.partition(f"ADD CONSTRAINT {parts['name']} ")[2]
    kind = "check" if definition.startswith("CHECK") else "foreign_key"
    return Safe(checked(parts["table"], parts["name"], definition), Stage.POST_DEPLOY, (kind, parts["name"]))


def _no_constraint(text: str, parts: Parts, names: Names) -> Safe:
    name = names.get(parts["name"], parts["name"])
    return Safe([f"ALTER TABLE {parts['table']} DROP CONSTRAINT IF EXISTS {name}"], Stage.PRE_DEPLOY)


def _null(text: str, parts: Parts, names: Names) -> Safe:
    table = parts["table"]
    changes = text.removeprefix(f"ALTER TABLE {table} ")
    if default := DEFAULT.match(changes):
        return Safe([text], Stage.PRE_DEPLOY if default["verb"] == "SET" else Stage.POST_DEPLOY, as_is=True)
    found = NULL.fullmatch(changes)
    if found is None:
        raise Unknown
    column = found["column"]
    if found["verb"] == "DROP":
        return Safe([text], Stage.PRE_DEPLOY)
    proof = plain_name(table, column, "zd")
    return Safe(
        [
            *checked(table, proof, f"CHECK ({column} IS NOT NULL)"),
            text,  # the check is proof, so this reads no rows
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {proof}",
        ],
        Stage.POST_DEPLOY,
    )


FORMS: dict[str, Callable[[str, Parts, Names], Safe]] = {
    "create_index": _index,
    "create_unique_index": _index,
    "delete_index": _no_index,
    "create_unique": _unique,
    "create_check": _constraint,
    "create_fk": _constraint,
    "delete_constraint": _no_constraint,
    "delete_check": _no_constraint,
    "delete_unique": _no_constraint,
    "alter_column": _null,
}
