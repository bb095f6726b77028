"""What is PostgreSQL asked about its catalog, locks and statistics, and what do the answers mean?

A session prepares the questions that follow every statement. Planning takes longer than answering, and Django's cursors
prepare nothing.
"""

from typing import Any, NamedTuple

from .facts import Column, Constraint, Index, Table

ALL = """
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'm') AND relpersistence <> 't' AND c.oid >= 16384
      AND nspname NOT IN ('pg_toast', 'information_schema')
"""
OIDS = f"SELECT c.oid::bigint {ALL}"
DESCRIBED = f"""
    SELECT c.oid::bigint, CASE WHEN pg_table_is_visible(c.oid) THEN '' ELSE nspname || '.' END || relname,
        pg_relation_filenode(c.oid)::bigint,
        (SELECT json_agg(json_build_array(attname, format_type(atttypid, atttypmod), attnotnull,
                pg_get_expr(adbin, adrelid), attidentity <> '', attgenerated <> '') ORDER BY attnum)
         FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
        (SELECT json_agg(json_build_array(conname, contype, convalidated, pg_get_constraintdef(k.oid),
                (SELECT json_agg(attname ORDER BY place) FROM unnest(conkey) WITH ORDINALITY AS u (attnum, place)
                 JOIN pg_attribute a USING (attnum) WHERE a.attrelid = conrelid), target.relname))
         FROM pg_constraint k LEFT JOIN pg_class target ON target.oid = confrelid
         WHERE conrelid = c.oid AND contype IN ('c', 'f', 'p', 'u', 'x')),
        (SELECT json_agg(json_build_array(i.relname, indisvalid, indisunique, indpred IS NOT NULL,
                (SELECT json_agg(coalesce(attname, '') ORDER BY place)
                 FROM unnest(indkey::int2[]) WITH ORDINALITY AS u (attnum, place)
                 LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.attnum WHERE place <= indnkeyatts),
                pg_get_indexdef(indexrelid),
                EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = c.oid)))
         FROM pg_index JOIN pg_class i ON i.oid = indexrelid WHERE indrelid = c.oid)
    {ALL}
"""  # noqa: S608
TABLES = f"{DESCRIBED} ORDER BY c.oid"
THESE_TABLES = f"{DESCRIBED} AND c.oid = ANY($1) ORDER BY c.oid"

ENUMS = "SELECT typname::text, enumlabel::text FROM pg_enum JOIN pg_type t ON t.oid = enumtypid"

REPORT = "pg_stat_force_next_flush()"  # at the end of the transaction
REPORTS_SINCE = 150000
COUNTS = """
    pg_stat_get_xact_numscans({0}), pg_stat_get_xact_tuples_inserted({0}) + pg_stat_get_xact_tuples_updated({0})
    + pg_stat_get_xact_tuples_deleted({0})
"""
COUNTED = f"SELECT oid::bigint, {COUNTS.format('oid')} FROM unnest($1) AS oid"  # noqa: S608

# The tables of initdb have OIDs below 16384. The first row is there only for its {report}.
OBSERVE = f"""
    SELECT relation::bigint, mode, {COUNTS.format("relation")}
    FROM pg_locks LEFT JOIN pg_class ON oid = relation
    WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation >= 16384
      AND (relkind IS NULL OR relkind IN ('r', 'p', 'm'))
    UNION ALL SELECT 0, {{report}}, 0, 0 ORDER BY 1, 2
"""  # noqa: S608

TABLES_OF_WORDS = """
    SELECT DISTINCT coalesce(indrelid, oid)::bigint FROM pg_class LEFT JOIN pg_index ON indexrelid = oid
    WHERE relname = ANY(%s) AND relkind IN ('r', 'p', 'm', 'i', 'I')
"""


class Counts(NamedTuple):
    """How many scans of a table began, and how many of its rows were inserted, updated or deleted."""

    scans: int = 0
    rows: int = 0

    def since(self, then: "Counts") -> "Counts":
        return Counts(max(self.scans - then.scans, 0), max(self.rows - then.rows, 0))


class Seen(NamedTuple):
    """What a transaction has locked and counted, by the OIDs of the tables."""

    held: set[tuple[int, str]]
    counts: dict[int, Counts]


def prepare(server_version: int) -> str:
    """Return the statements that prepare ``zero_downtime_observe`` and the others in a session."""
    questions = {
        "observe": OBSERVE.format(report=f"{REPORT}::text" if server_version >= REPORTS_SINCE else "''"),
        "counted (oid[])": COUNTED,
        "these_tables (oid[])": THESE_TABLES,
    }
    prepared = (f"PREPARE zero_downtime_{name} AS {question}" for name, question in questions.items())
    return "; ".join(["DEALLOCATE ALL", *prepared])


def table_of(name: str, node: int | None, columns: Any, constraints: Any, indexes: Any) -> Table:
    """Make a table of what ``DESCRIBED`` returns after the OID."""
    return Table(
        name,
        node,
        {column[0]: Column(*column) for column in columns or ()},
        {row[0]: Constraint._make([*row[:4], tuple(row[4] or ()), row[5]]) for row in constraints or ()},
        {row[0]: Index._make([*row[:4], tuple(row[4] or ()), *row[5:]]) for row in indexes or ()},
    )
