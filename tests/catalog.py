"""What the catalog of a database says of its schema, in a form that two moments can be compared by."""

from typing import Any

QUERIES = {
    "columns": """
        SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relkind = 'r' AND attnum > 0 AND NOT attisdropped AND relnamespace = 'public'::regnamespace
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    """,
    "indexes": """
        SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE relnamespace = 'public'::regnamespace
    """,
    "triggers": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal
    """,
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
    """,
    "enums": """
        SELECT enumtypid::regtype::text, array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum GROUP BY enumtypid
    """,
}


def fingerprint(cursor: Any) -> dict[str, set[str]]:
    """Return everything that migrations make, as sets of lines: columns, types, defaults, constraints, indexes …"""
    found = {}
    for kind, query in QUERIES.items():
        cursor.execute(query)
        found[kind] = {" | ".join(map(str, row)) for row in cursor.fetchall()}
    return found
