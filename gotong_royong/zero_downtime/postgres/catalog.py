"""What is in the database? Each function asks PostgreSQL's catalog one question and changes nothing.

A question about a table's parts takes ACCESS SHARE on it for a moment, while PostgreSQL measures or describes it
(https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES). ``table`` and ``table_here`` take none.

Names are SQL identifiers, quoted or not: PostgreSQL finds a table along the search path, and an index in the schema of
its table.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper


class Column(NamedTuple):
    """A column; ``empty`` says whether its table has no rows."""

    not_null: bool
    identity: bool
    empty: bool


class Index(NamedTuple):
    """An index in the schema of a table; ``here`` says whether it is on that table, ``name`` includes the schema.

    ``abandoned`` says whether a failed build left it invalid. While another session builds it, it is neither
    ``abandoned`` nor ``valid``.
    """

    name: str
    here: bool
    valid: bool
    abandoned: bool
    definition: str


class Constraint(NamedTuple):
    """A constraint; ``target`` is the OID of the table that a foreign key points to, or 0."""

    name: str
    kind: str
    columns: list[str]
    target: int
    target_columns: list[str]
    valid: bool
    definition: str


class Part(NamedTuple):
    """A column, a constraint or an index of a table, in words without the table's name."""

    kind: str
    name: str
    definition: str
    default: str | None

    def __str__(self) -> str:
        return self.definition if self.default is None else f"{self.definition} DEFAULT {self.default}"


class Table(NamedTuple):
    """A table with its partitions and child tables: about how many rows, and how many bytes with the indexes.

    ``rows`` is None if it was never analyzed; ``parents`` are the tables that its foreign keys point to.
    """

    name: str
    rows: int | None
    bytes: int
    parents: tuple[str, ...]

    def __str__(self) -> str:
        if self.rows == 0:
            return f"{self.name}: empty"
        about = "unknown number of" if self.rows is None else f"about {float(f'{self.rows:.3g}'):,.0f}"
        never = " (never analyzed)" if self.rows is None else ""
        return f"{self.name}: {about} rows{never}, {_size(self.bytes)}"


class Dependent(NamedTuple):
    """An object that depends on a table or a column: a view, a function, the foreign key of another table.

    ``catalog`` is PostgreSQL's table in which ``oid`` is; ``table`` is the table of a foreign key, else 0.
    """

    catalog: str
    oid: int
    table: int
    description: str

    def __str__(self) -> str:
        return self.description


# https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CATALOG
TABLE = "SELECT to_regclass(%(name)s)::oid"

# Only where CREATE TABLE would put it.
TABLE_HERE = """
    SELECT to_regclass(
        CASE cardinality(parse_ident(%(name)s)) WHEN 1 THEN quote_ident(current_schema()) || '.' ELSE '' END || %(name)s
    )::oid
"""

COLUMN = """
    SELECT attnotnull, attidentity <> '', pg_relation_size(attrelid) = 0
    FROM pg_attribute
    WHERE attrelid = to_regclass(%(table)s) AND attname = (parse_ident(%(name)s))[1]::name AND NOT attisdropped
"""

ASPECTS = """
    SELECT concat_ws(' ', format_type(atttypid, atttypmod), attcollation), attnotnull::text,
           pg_get_expr(adbin, adrelid), attidentity, col_description(attrelid, attnum)
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = to_regclass(%(table)s) AND attname = (parse_ident(%(name)s))[1]::name AND NOT attisdropped
"""
# An index is made in the schema of its table, which the search path may not find.
INDEX_NAMED = """
    SELECT CASE WHEN %(is_new)s AND NOT coalesce(indisvalid, true) THEN NULL ELSE coalesce(oid::text, (
        SELECT '?' FROM pg_class WHERE relkind IN ('i', 'I')
        AND relname = (parse_ident(%(name)s))[cardinality(parse_ident(%(name)s))]::name LIMIT 1)) END
    FROM to_regclass(%(name)s) AS oid LEFT JOIN pg_index ON indexrelid = oid
"""
NAMED = {
    "index": INDEX_NAMED,
    **dict.fromkeys(("function", "procedure", "aggregate"), "SELECT to_regproc(%(name)s)::oid::text"),
    **dict.fromkeys(("type", "domain"), "SELECT to_regtype(%(name)s)::oid::text"),
    "schema": "SELECT to_regnamespace(%(name)s)::oid::text",
    "collation": "SELECT to_regcollation(%(name)s)::oid::text",
    "extension": "SELECT max(oid)::text FROM pg_extension WHERE extname = (parse_ident(%(name)s))[1]::name",
}
NAMED |= {
    kind: f"SELECT max(oid)::text FROM pg_{kind} WHERE {short}relid = to_regclass(%(table)s) "  # noqa: S608
    f"AND {short}name = (parse_ident(%(name)s))[1]::name"
    for kind, short in {"trigger": "tg", "policy": "pol"}.items()
}
RELATIONS = {"table", "foreign table", "view", "materialized view", "sequence"}
COMMENT = "SELECT obj_description(to_regclass(%(table)s), 'pg_class')"

# The index of a partitioned table counts as valid, though it is not until each partition has one. A role that may not
# see which index another session builds still sees that it builds one, and on which table it holds the lock
# (https://www.postgresql.org/docs/current/progress-reporting.html#CREATE-INDEX-PROGRESS-REPORTING).
INDEX = """
    SELECT format('%%I.%%I', nspname, c.relname), i.indrelid = t.oid,
           i.indisvalid OR c.relkind = 'I', NOT i.indisvalid AND c.relkind <> 'I' AND NOT EXISTS (
               SELECT FROM pg_stat_progress_create_index AS building
               LEFT JOIN pg_locks AS l ON l.pid = building.pid AND l.database = building.datid AND l.granted
                    AND l.relation = i.indrelid AND l.mode = 'ShareUpdateExclusiveLock'
               WHERE building.pid <> pg_backend_pid() AND building.datname = current_database()
                     AND (building.index_relid = i.indexrelid OR building.relid IS NULL AND l.pid IS NOT NULL)
           ), pg_get_indexdef(i.indexrelid)
    FROM pg_class t
    JOIN pg_class c ON c.relnamespace = t.relnamespace AND c.relname = (parse_ident(%(name)s))[1]::name
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indexrelid = c.oid
    WHERE t.oid = to_regclass(%(table)s)
"""

# Under the names that PostgreSQL chooses: https://www.postgresql.org/docs/current/sql-reindex.html.
INVALID_TWINS = """
    WITH indexes AS (
        SELECT indrelid, indisvalid, format('%%I.%%I', nspname, relname) AS name, relname,
               ROW(indisunique, substring(pg_get_indexdef(indexrelid) FROM ' USING .*')) AS definition
        FROM pg_index JOIN pg_class c ON c.oid = indexrelid JOIN pg_namespace n ON n.oid = relnamespace
        WHERE indrelid = coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = to_regclass(%(name)s)),
                                  to_regclass(%(name)s))
    )
    SELECT name FROM indexes
    WHERE NOT indisvalid AND relname ~ '_(idx|ccnew|ccold)[0-9]*$'
          AND definition IN (SELECT definition FROM indexes WHERE indisvalid)
          AND NOT EXISTS (
              SELECT FROM pg_locks WHERE pid <> pg_backend_pid() AND granted AND relation = indrelid
                     AND mode = 'ShareUpdateExclusiveLock' AND pid IN (
                  SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database())
          )
"""

CONSTRAINTS = """
    SELECT conname::text, contype::text,
           ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute USING (attnum) WHERE attrelid = conrelid ORDER BY place),
           confrelid,
           ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute USING (attnum) WHERE attrelid = confrelid ORDER BY place),
           convalidated, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid = to_regclass(%(table)s)
"""
CONSTRAINT = f"{CONSTRAINTS} AND conname = (parse_ident(%(name)s))[1]::name"

PARTS = """
    SELECT 'column', attname::text,
           format_type(atttypid, atttypmod)
           || CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || attcollation::regcollation ELSE '' END
           || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
           || CASE attidentity WHEN 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
                               WHEN 'd' THEN ' GENERATED BY DEFAULT AS IDENTITY' ELSE '' END
           || CASE attgenerated WHEN 's' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(adbin, adrelid) || ') STORED'
                                WHEN 'v' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(adbin, adrelid) || ')'
                                ELSE '' END,
           CASE attgenerated WHEN '' THEN pg_get_expr(adbin, adrelid) END
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
UNION ALL
    SELECT 'constraint', conname::text, regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', ''), NULL
    FROM pg_constraint WHERE conrelid = to_regclass(%(table)s) AND contype IN ('c', 'p', 'u', 'x')
UNION ALL
    SELECT 'index', relname::text,
           CASE WHEN indisunique THEN 'UNIQUE INDEX' ELSE 'INDEX' END
           || substring(pg_get_indexdef(indexrelid) FROM ' USING .*'), NULL
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indrelid = to_regclass(%(table)s)
"""

# The columns of pg_collation differ between versions.
COLLATION = """
    SELECT (to_jsonb(c) - '{oid,collname,collnamespace,collowner,collversion}'::text[])::text
    FROM pg_collation c WHERE oid = to_regcollation(%(name)s)
"""

# Rows as the planner estimates them: https://www.postgresql.org/docs/current/row-estimation-examples.html
TABLES = """
    WITH named AS (
        SELECT name, coalesce(indrelid, to_regclass(name)::oid) AS oid
        FROM unnest(%(names)s::text[]) AS name LEFT JOIN pg_index ON indexrelid = to_regclass(name)
        UNION
        SELECT name, confrelid FROM unnest(%(names)s::text[]) AS name
        JOIN pg_constraint ON contype = 'f' AND conname = (parse_ident(name))[1]::name
    ), meant AS (
        SELECT * FROM named
        UNION
        SELECT confrelid::regclass::text, confrelid FROM named JOIN pg_constraint ON conrelid = named.oid
        WHERE contype = 'f'
    )
    SELECT meant.name, pg_class.oid::regclass::text, size.rows, size.bytes,
           ARRAY(SELECT DISTINCT confrelid::regclass::text FROM pg_constraint
                 WHERE conrelid = pg_class.oid AND contype = 'f' ORDER BY 1)
    FROM meant JOIN pg_class ON pg_class.oid = meant.oid
    CROSS JOIN LATERAL (
        SELECT CASE WHEN bool_and(relpages > 0 OR (pages = 0 AND NOT is_taken)) THEN
                   sum(CASE WHEN pages = 0 THEN 0 ELSE reltuples / nullif(relpages, 0) * pages END)::bigint END AS rows,
               coalesce(sum(heap.bytes), 0)::bigint AS bytes
        FROM (
            WITH RECURSIVE tree (oid) AS (
                SELECT pg_class.oid UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
            )
            SELECT oid FROM tree
        ) AS tree
        JOIN pg_class AS part ON part.oid = tree.oid
        CROSS JOIN LATERAL (
            SELECT is_taken, CASE WHEN is_taken THEN relpages ELSE pg_relation_size(part.oid) / block_size END AS pages,
                   CASE WHEN is_taken THEN relpages * block_size ELSE pg_total_relation_size(part.oid) END AS bytes
            FROM (
                SELECT current_setting('block_size')::bigint AS block_size, EXISTS (
                    SELECT FROM pg_locks WHERE relation = part.oid AND mode = 'AccessExclusiveLock'
                ) AS is_taken
            ) AS now
        ) AS heap
    ) AS size
    WHERE pg_class.relkind IN ('r', 'p', 'm')
      AND pg_class.relnamespace <> ALL ('{pg_catalog,information_schema}'::regnamespace[])
"""

# See https://www.postgresql.org/docs/current/catalog-pg-depend.html. A rule stands for its view. A part of the table,
# such as an index, depends on it automatically or internally.
DEPENDENTS = """
    WITH RECURSIVE going (classid, objid, objsubid, own) AS (
        SELECT 'pg_class'::regclass::oid, %(table)s::oid, coalesce((
            SELECT attnum FROM pg_attribute WHERE attrelid = %(table)s::oid AND attname = %(column)s
        ), 0)::int, true
        UNION
        SELECT CASE WHEN ev_class IS NULL THEN depend.classid ELSE 'pg_class'::regclass END,
               coalesce(ev_class, depend.objid), CASE WHEN ev_class IS NULL THEN depend.objsubid ELSE 0 END,
               ev_class IS NULL AND deptype NOT IN ('n', 'x')
        FROM going
        JOIN pg_depend AS depend ON refclassid = going.classid AND refobjid = going.objid
             AND going.objsubid IN (0, refobjsubid)
        LEFT JOIN pg_rewrite ON depend.classid = 'pg_rewrite'::regclass AND pg_rewrite.oid = depend.objid
        WHERE ev_class IS DISTINCT FROM going.objid
    )
    SELECT going.classid::regclass::text, going.objid, coalesce(max(conrelid::bigint), 0),
           pg_describe_object(going.classid, going.objid, going.objsubid)
    FROM going LEFT JOIN pg_constraint ON going.classid = 'pg_constraint'::regclass AND pg_constraint.oid = going.objid
    GROUP BY going.classid, going.objid, going.objsubid HAVING NOT bool_or(own)
    ORDER BY 4
"""


def table(connection: BaseDatabaseWrapper, name: str) -> int | None:
    """Return the OID of the table of that name along the search path."""
    return _ask(connection, TABLE, name=name)[0][0]  # type: ignore[no-any-return]


def table_here(connection: BaseDatabaseWrapper, name: str) -> int | None:
    """Return the OID of the table of that name in the schema in which new tables are made."""
    return _ask(connection, TABLE_HERE, name=name)[0][0]  # type: ignore[no-any-return]


def column(connection: BaseDatabaseWrapper, table: str, name: str) -> Column | None:
    """Return the column of the table."""
    rows = _ask(connection, COLUMN, table=table, name=name)
    return Column(*rows[0]) if rows else None


def aspects(connection: BaseDatabaseWrapper, table: str, name: str = "") -> dict[str, str | None]:
    """Return what ALTER and COMMENT change of a column, or of the table: type, default, comment and so on."""
    if not name:
        return {"comment": _ask(connection, COMMENT, table=table)[0][0]}
    rows = _ask(connection, ASPECTS, table=table, name=name)
    return dict(zip(("TYPE", "NULL", "DEFAULT", "identity", "comment"), rows[0], strict=True)) if rows else {}


def named(connection: BaseDatabaseWrapper, kind: str, name: str, on: str, *, is_new: bool) -> str | None:
    """Return the OID of the table, view, extension … of that name, None if there is none, "?" if that is unknown.

    Args:
        on: the table of a trigger or policy.
        is_new: whether to look only where CREATE would make it, and to ignore an invalid index.
    """
    if kind in RELATIONS:
        found = (table_here if is_new else table)(connection, name)
        return str(found) if found else None
    rows = _ask(connection, NAMED[kind], name=name, table=on, is_new=is_new) if kind in NAMED else [("?",)]
    return rows[0][0]


def index(connection: BaseDatabaseWrapper, table: str, name: str) -> Index | None:
    """Return the index of that name in the schema of the table; it may be on another table."""
    rows = _ask(connection, INDEX, table=table, name=name)
    return Index(*rows[0]) if rows else None


def invalid_twins(connection: BaseDatabaseWrapper, name: str) -> list[str]:
    """Return the invalid indexes of a table that equal a valid one but for the name PostgreSQL chose.

    Failed builds left them. While another session builds an index on the table, it returns none.

    Args:
        name: of the table, or of one of its indexes.
    """
    return [found for (found,) in _ask(connection, INVALID_TWINS, name=name)]


def constraints(connection: BaseDatabaseWrapper, table: str) -> list[Constraint]:
    """Return the constraints of the table."""
    return [Constraint(*row) for row in _ask(connection, CONSTRAINTS, table=table)]


def constraint(connection: BaseDatabaseWrapper, table: str, name: str) -> Constraint | None:
    """Return the constraint of the table."""
    rows = _ask(connection, CONSTRAINT, table=table, name=name)
    return Constraint(*rows[0]) if rows else None


def parts(connection: BaseDatabaseWrapper, table: str) -> list[Part]:
    """Return the table's columns, its constraints except foreign keys, and its indexes."""
    return [Part(*row) for row in _ask(connection, PARTS, table=table)]


def collation(connection: BaseDatabaseWrapper, name: str) -> str | None:
    """Return the definition of the collation, as JSON."""
    rows = _ask(connection, COLLATION, name=name)
    return rows[0][0] if rows else None


def tables(connection: BaseDatabaseWrapper, names: Collection[str]) -> dict[str, Table]:
    """Return the tables of these names, and the tables that their foreign keys point to.

    The name of an index means its table, the name of a foreign key the table it points to; other names are left out.
    Takes ACCESS SHARE on each table for a moment. It does not wait for a session with ACCESS EXCLUSIVE: it then takes
    the size from the last VACUUM or ANALYZE
    (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-DBSIZE).
    """
    rows = _ask(connection, TABLES, names=sorted(names))
    return {name: Table(table, count, size, tuple(parents)) for name, table, count, size, parents in rows}


def dependents(connection: BaseDatabaseWrapper, table: int, column: str = "") -> list[Dependent]:
    """Return what depends on the table or a column, so that dropping that needs CASCADE; not parts of the table.

    Args:
        table: an OID.
        column: the name without quotes; empty for the whole table.
    """
    return [Dependent(*row) for row in _ask(connection, DEPENDENTS, table=table, column=column)]


def _size(number: float) -> str:
    """Format a number of bytes as PostgreSQL does."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 10240:
            return f"{number:,.0f} {unit}"
        number /= 1024
    return f"{number:,.0f} TB"


def _ask(connection: BaseDatabaseWrapper, question: str, **values: str | int | list[str]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(question, values)
        return list(cursor.fetchall())
