"""How are the statements of a way back read?

The patterns match the outline of a statement, or of one action of an ALTER TABLE: words in capitals with one space
between them, each quoted name a number in quotes.
"""

import re
from collections.abc import Iterator

from gotong_royong.zero_downtime.statements import Statement

NAME = r'(?:"\d+"|\w[\w$]*)(?:\.(?:"\d+"|\w[\w$]*))*'
IF_EXISTS = r"(?:IF EXISTS )?"

DROPS = re.compile(
    rf"(?:DROP (?:MATERIALIZED )?(?=TABLE|VIEW)|(?=TRUNCATE))(?P<what>TABLE|VIEW|TRUNCATE) (?:TABLE )?{IF_EXISTS}"
    rf"(?:ONLY )?(?P<names>{NAME}(?: , {NAME})*)"
)
DELETE = re.compile(rf"DELETE FROM (?:ONLY )?(?P<name>{NAME})(?= WHERE |$)")  # noqa: S608
UPDATE = re.compile(rf"UPDATE (?:ONLY )?(?P<name>{NAME}) SET ")  # noqa: S608
FILL = re.compile(
    rf"UPDATE {NAME} SET (?P<column>{NAME}) = (?:(?! WHERE ).)* WHERE (?P<asked>{NAME}) IS NULL$"  # noqa: S608
)
ALTER_TABLE = re.compile(rf"ALTER TABLE {IF_EXISTS}(?:ONLY )?(?P<name>{NAME}) (?:\* )?")
RENAME_TABLE = re.compile(rf"RENAME TO (?P<new>{NAME})")
SET_SCHEMA = re.compile(rf"SET SCHEMA (?P<schema>{NAME})")
RENAME_COLUMN = re.compile(rf"RENAME (?!CONSTRAINT )(?:COLUMN )?(?P<old>{NAME}) TO (?P<new>{NAME})")
DROP_CONSTRAINT = re.compile(rf"DROP CONSTRAINT {IF_EXISTS}(?P<name>{NAME})")
DROP_COLUMN = re.compile(rf"DROP (?:COLUMN )?{IF_EXISTS}(?P<name>{NAME})")
ADD_COLUMN = re.compile(
    rf"ADD (?!CONSTRAINT |CHECK |UNIQUE |PRIMARY |FOREIGN |EXCLUDE )(?:COLUMN )?(?:IF NOT EXISTS )?(?P<name>{NAME}) "
)
ALTER_TYPE = re.compile(rf"ALTER (?:COLUMN )?(?P<name>{NAME}) (?:SET DATA )?TYPE ")
SET_NOT_NULL = re.compile(rf"ALTER (?:COLUMN )?(?P<name>{NAME}) SET NOT NULL")
UNIQUE = re.compile(rf"ADD (?:CONSTRAINT {NAME} )?(?:UNIQUE|PRIMARY KEY) \((?P<columns> {NAME}(?: , {NAME})*) \)")
CHECK = re.compile(rf"ADD (?:CONSTRAINT {NAME} )?CHECK \(")

WRITES = re.compile(rf"\b(?:DELETE FROM|UPDATE (?:ONLY )?{NAME} (?:(?:AS )?{NAME} )?SET|DO UPDATE|MERGE INTO)\b")
DROPS_DATA = re.compile(
    r"DROP (?:SCHEMA|EXTENSION|SEQUENCE|OWNED|FOREIGN TABLE|DATABASE|SERVER)\b|ALTER TYPE .* DROP ATTRIBUTE\b"
)
HAS_VALUE = re.compile(r"\b(?:DEFAULT|GENERATED|(?:BIG|SMALL)?SERIAL\d?)\b")
CALL = re.compile(rf"(?P<name>{NAME}) \(")
QUERIES = {"SELECT", "WITH", "VALUES", "INSERT"}
SAFE = QUERIES | {
    *("ABORT", "ALTER", "ANALYZE", "BEGIN", "CHECKPOINT", "CLUSTER", "COMMENT", "COMMIT", "CREATE", "DISCARD", "DROP"),
    *("END", "GRANT", "LISTEN", "LOCK", "NOTIFY", "REFRESH", "REINDEX", "RELEASE", "RESET", "REVOKE", "ROLLBACK"),
    *("SAVEPOINT", "SECURITY", "SET", "SHOW", "START", "TABLE", "UNLISTEN", "VACUUM"),
}
"""Statements that lose nothing, but for what is looked for in them."""

IS_CUT = re.compile(r"(?:character varying|character|varchar|char|bpchar|bit|bit varying|varbit) ?\(", re.IGNORECASE)
"""Types to which an assignment refuses what is too long, and a cast cuts it."""
CANNOT_BE_CONVERTED = "22", "42846"  # https://www.postgresql.org/docs/current/errcodes-appendix.html
OPERATORS = set("+-*/<>=~!@#%^&|`?:")


def actions(statement: Statement) -> Iterator[Statement]:
    """Yield each action of an ALTER TABLE by itself."""
    match = ALTER_TABLE.match(statement.outline)
    start = len(match[0].replace(".", " . ").split()) if match else 0
    action, depth = list[str](), 0
    for part in [*(part for part in statement.tokens[start:] if part != ";"), ","]:
        depth += (part in {"(", "["}) - (part in {")", "]"})
        if part == "," and not depth:
            yield Statement(text(action))
            action = []
        else:
            action.append(part)


def conversion(action: Statement) -> tuple[str, str]:
    """Return to which type an ALTER COLUMN converts, and by which expression, if it says one."""
    said = [part.upper() for part in action.tokens]
    using = said.index("USING") if "USING" in said else len(said)
    end = said.index("COLLATE") if "COLLATE" in said[:using] else using
    return text(action.tokens[said.index("TYPE") + 1 : end]), text(action.tokens[using + 1 :])


def checked(action: Statement) -> str:
    """Return the condition of an ADD CHECK, in its brackets."""
    said = [part.upper() for part in action.tokens]
    depth, start = 0, said.index("CHECK") + 1
    for place, part in enumerate(said[start:], start):
        depth += (part == "(") - (part == ")")
        if not depth:
            return text(action.tokens[start : place + 1])
    return "(true)"


def condition(statement: Statement) -> str | None:
    """Return the WHERE of a DELETE or an UPDATE, or an empty text; None if it asks other tables or a cursor, too."""
    depth, where, said = 0, len(statement.tokens), [part.upper() for part in statement.tokens]
    for place, word in enumerate(said):
        depth += (word == "(") - (word == ")")
        if depth == 0 and word == "WHERE":
            where = place
        elif depth == 0 and (word in {"USING", "RETURNING", "CURRENT"} or (word == "FROM" and place > 1)):
            return None
    return text([part for part in statement.tokens[where:] if part != ";"])


def called(statement: Statement) -> list[str]:
    """Return the names of the functions that a query calls, and of what else stands before a bracket."""
    return [named(statement, match["name"]) for match in CALL.finditer(statement.outline)]


def text(tokens: list[str]) -> str:
    """Write tokens one after the other, with the operators whole that the lexer has cut."""
    written = ""
    for part in tokens:
        is_one = part in OPERATORS and written[-1:] in OPERATORS
        written += part if is_one or part == "." or written[-1:] == "." else f" {part}"
    return written.strip()


def named(statement: Statement, outlined: str) -> str:
    """Return a name as it is written in the statement, where its outline has ``"7"`` or capitals."""
    return re.sub(r'"(\d+)"', lambda found: statement.tokens[int(found[1])], outlined.lower())


def parts(name: str) -> tuple[str, ...]:
    """Return the parts of a name, without quotes."""
    written: list[str] = re.findall(r'"(?:[^"]|"")*"|[^.]+', name)
    return tuple(part[1:-1].replace('""', '"') if part.startswith('"') else part for part in written)


def plain(name: str) -> str:
    """Return the last part of a name, without quotes."""
    return parts(name)[-1]


def quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def shown(statement: Statement) -> str:
    said = " ".join(statement.text.split()).rstrip("; ")
    return said if len(said) <= 80 else f"{said[:79]}…"
