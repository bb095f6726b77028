"""How large are the tables in the configured database? Each violation says it, and keeps its level.

A table that is empty here may be full elsewhere, or full here when the migration is applied.
"""

from dataclasses import replace

from django.db.backends.base.base import BaseDatabaseWrapper

from ..exceptions import counted
from .registry import Violation

# The size of a partitioned table is that of its partitions.
SIZES = """
    SELECT CASE WHEN pg_table_is_visible(c.oid) THEN '' ELSE nspname || '.' END || c.relname,
        sum(nullif(part.reltuples, -1))::bigint, pg_size_pretty(sum(pg_table_size(part.oid)))
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace,
        LATERAL (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf UNION SELECT c.oid) AS tree,
        pg_class part
    WHERE part.oid = tree.relid AND part.relkind IN ('r', 'm') AND c.relkind IN ('r', 'p', 'm') AND c.oid >= 16384
    GROUP BY c.oid, nspname, c.relname
"""


def sizes(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Say of each table how many rows it has, as its last ANALYZE has found, and how large it is."""
    with connection.cursor() as cursor:
        cursor.execute(SIZES)
        return {name: f"{_rows(rows)} ({size}) in the configured database" for name, rows, size in cursor.fetchall()}


def _rows(rows: int | None) -> str:
    return "rows that no ANALYZE has counted" if rows is None else f"about {counted(rows, 'row')}"


def weighed(one: Violation, known: dict[str, str]) -> Violation:
    """Say in the message how large the table is, if that is known."""
    size = known.get(one.table)
    return replace(one, message=f"{one.message} {one.table} has {size}.") if size else one
