"""How does a recipe write a name: in SQL, and in a string of Python that holds SQL?"""

import re
from collections.abc import Iterable

# pg_get_keywords() calls these reserved: https://www.postgresql.org/docs/current/sql-keywords-appendix.html
# fmt: off
RESERVED = frozenset({
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary",
    "both", "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end", "except",
    "false", "fetch", "for", "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike", "in",
    "initially", "inner", "intersect", "into", "is", "isnull", "join", "lateral", "leading", "left", "like",
    "limit", "localtime", "localtimestamp", "natural", "not", "notnull", "null", "offset", "on", "only", "or",
    "order", "outer", "overlaps", "placing", "primary", "references", "returning", "right", "select",
    "session_user", "similar", "some", "symmetric", "system_user", "table", "tablesample", "then", "to", "trailing",
    "true", "union", "unique", "user", "using", "variadic", "verbose", "when", "where", "window", "with"
})
# fmt: on
PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


class Name(str):
    """A name in the database, or several. The gap in a sentence says how the name is written there.

    ``{table}`` is the name itself, ``{table:sql}`` an SQL identifier, ``{table:text}`` the name within a string of
    Python, and ``{table:sql_text}`` an SQL identifier within a string of Python.
    """

    names: tuple[str, ...]

    @classmethod
    def several(cls, names: Iterable[str]) -> "Name":
        """Join the names. An empty one, which stands for an expression, becomes an ellipsis."""
        parts = tuple(name or "…" for name in names)
        several = cls(", ".join(parts))
        several.names = parts
        return several

    def __format__(self, how: str) -> str:
        sql = ", ".join(map(quoted, getattr(self, "names", (str(self),))))
        return {"": str(self), "sql": sql, "text": escaped(self), "sql_text": escaped(sql)}[how]


def quoted(name: str) -> str:
    """Write the name as an SQL identifier, in quotes only where it needs them."""
    if name == "…" or (PLAIN.fullmatch(name) and name not in RESERVED):
        return name
    return '"{}"'.format(name.replace('"', '""'))


def escaped(text: str) -> str:
    """Write the text as Python has it between double quotes."""
    return str(text).replace("\\", "\\\\").replace('"', '\\"')
