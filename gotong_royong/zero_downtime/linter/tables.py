"""Which tables are there, of what is each made, and has that changed? The questions, and what their answers mean."""

from typing import Any

from gotong_royong.zero_downtime.linter.facts import Column, Constraint, Index, Table

# Where the rows that describe a table lie: one that is changed lies elsewhere
# (https://www.postgresql.org/docs/current/ddl-system-columns.html).
TRACK = """
    md5(concat(c.ctid,
        (SELECT string_agg(ctid::text, '') FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0),
        (SELECT string_agg(ctid::text, '') FROM pg_attrdef WHERE adrelid = c.oid),
        (SELECT string_agg(ctid::text, '') FROM pg_constraint WHERE conrelid = c.oid),
        (SELECT string_agg(concat(x.ctid, i.ctid), '') FROM pg_index x JOIN pg_class i ON i.oid = indexrelid
         WHERE indrelid = c.oid)))
"""
TRACKS = f"SELECT c.oid::bigint, {TRACK} FROM pg_class c WHERE c.oid = ANY(%s::oid[])"  # noqa: S608
ALL = """
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'm') AND relpersistence <> 't' AND c.oid >= 16384
      AND nspname NOT IN ('pg_toast', 'information_schema')
"""
OIDS = f"SELECT c.oid::bigint {ALL}"
TABLES = f"""
    SELECT c.oid::bigint, {TRACK}, CASE nspname WHEN current_schema() THEN '' ELSE nspname || '.' END || relname,
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
THESE_TABLES = f"{TABLES} AND c.oid = ANY(%s::oid[])"


def table_of(name: str, node: int | None, columns: Any, constraints: Any, indexes: Any) -> Table:
    """Make a table of what ``TABLES`` returns after the first two columns."""
    return Table(
        name,
        node,
        {column[0]: Column(*column) for column in columns or ()},
        {row[0]: Constraint._make([*row[:4], tuple(row[4] or ()), row[5]]) for row in constraints or ()},
        {row[0]: Index._make([*row[:4], tuple(row[4] or ()), *row[5:]]) for row in indexes or ()},
    )
