"""Which statements does a string of SQL hold, and what is each of them?

sqlparse's lexer cuts the text into tokens, by PostgreSQL's rules: comments nest, a backslash in a plain string quotes
nothing, and ``#`` begins no comment (https://www.postgresql.org/docs/current/sql-syntax-lexical.html). Comments,
strings and quoted names are no words of the statement. Most statements are read only to their first word.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import dropwhile
from string import ascii_lowercase, ascii_uppercase
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.sql import Composable
from sqlparse import tokens as kinds
from sqlparse.lexer import Lexer

LEXER = Lexer()
LEXER.clear()  # type: ignore[no-untyped-call]
LEXER.set_SQL_REGEX(  # type: ignore[no-untyped-call]
    [
        (r"\s+", kinds.Whitespace),
        (r"--[^\r\n]*", kinds.Comment.Single),
        (r"/\*[\s\S]*?\*/", kinds.Comment.Multiline),
        (r"E'(?:[^'\\]++|''|\\[\s\S])*+'", kinds.String),
        (r"[BNX]?'(?:[^']++|'')*+'", kinds.String),
        (r"(\$(?:[^\W\d]\w*)?\$)[\s\S]*?\1", kinds.String),
        (r'(?:U&)?"(?:[^"]++|"")*+"', kinds.Name.Quoted),
        (r"[^\W\d][\w$]*", kinds.Name),
        (r"\d[\w.]*", kinds.Number),
        (r"(?:(?!--|/\*)[-+*/<>=~!@#%^&|`?:])+", kinds.Operator),
    ]
)

SEVERAL = re.compile(r";\s*\S")  # matches every string of several statements, and some others
# Matches every string that holds more than one transaction, or a patient statement.
MATTERS = re.compile(r"CONCURRENTLY|VALIDATE|(?:^|[;/\s])(?:COMMIT|END|ROLLBACK|ABORT)\b", re.IGNORECASE)
# Other sessions queue for the table behind these statements; behind all others only for the same rows.
HOLDING_UP = {"ALTER", "CLUSTER", "COMMENT", "CREATE", "DROP", "LOCK", "REFRESH", "REINDEX", "TRUNCATE", "VACUUM"}
MAY_HOLD_UP = re.compile(rf"\b(?:{'|'.join(sorted(HOLDING_UP))})\b", re.IGNORECASE)
UPPER = str.maketrans(ascii_lowercase, ascii_uppercase)  # PostgreSQL folds no other letters
LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
NEEDS_NO_QUOTES = re.compile(r'"[a-z_][a-z0-9_$]*"')
TEXT = re.compile(r"(?:E?'|(\$\w*\$))([\s\S]*)(?:'|\1)", re.IGNORECASE)
COMMENT_MARK = re.compile(r"/\*|\*/")

# These match an outline or a flat outline: see Statement.
NAME = r'(?:"\d+"|\w[\w$]*)(?:\.(?:"\d+"|\w[\w$]*))*'
ALTER_TABLE = (
    rf"ALTER (?:(?:FOREIGN )?TABLE|(?:MATERIALIZED )?VIEW) (?:IF EXISTS )?(?:ONLY )?(?P<table>{NAME}) (?:\* )?"
)
ALTERED = re.compile(ALTER_TABLE)
CONCURRENT = re.compile(
    r"(?:CREATE (?:UNIQUE )?INDEX|DROP INDEX|REFRESH MATERIALIZED VIEW) CONCURRENTLY\b"
    r"|REINDEX (?:\( [^)]* \) )?(?:INDEX|TABLE|SCHEMA|DATABASE|SYSTEM) CONCURRENTLY\b"
    r"|REINDEX \( (?:[^)]* )?CONCURRENTLY (?!OFF|FALSE|0)[^)]*\)"
    rf"|{ALTER_TABLE}DETACH PARTITION {NAME} CONCURRENTLY\b"
)
ONLY_VALIDATES = re.compile(rf"{ALTER_TABLE}VALIDATE CONSTRAINT {NAME}(?: , VALIDATE CONSTRAINT {NAME})*(?: ;)?")
BUILD = re.compile(
    rf"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (?:IF NOT EXISTS )?(?!ON )(?P<name>{NAME}) ON (?:ONLY )?(?P<table>{NAME})"
)
BUILD_UNNAMED = re.compile(
    r"(?:CREATE (?:UNIQUE )?INDEX CONCURRENTLY ON (?:ONLY )?"
    rf"|REINDEX (?:\( [^)]* \) )?(?:INDEX|TABLE) (?:CONCURRENTLY )?)(?P<name>{NAME})"
)
ADDING = {"INSERT", "SELECT", "SET", "RESET", "GRANT", "COMMENT", "ANALYZE", "VACUUM", "LOCK", "BEGIN", "COMMIT"}
CONTROL = {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"}
ENDS = re.compile(r"(?:COMMIT|END|ABORT|ROLLBACK(?! (?:WORK |TRANSACTION )?TO))\b")
COMMITS_ON_ITS_WAY = re.compile(r"COMMIT|ROLLBACK|CALL", re.IGNORECASE)
LEANS_ON_OTHERS = re.compile(r"LOCK\b|DECLARE\b|SET (?:LOCAL|TRANSACTION|CONSTRAINTS)\b")
OF_THE_SERVER = re.compile(r"\w+ (?:DATABASE|TABLESPACE|SYSTEM|SUBSCRIPTION)\b")
UPDATE = re.compile(
    rf"UPDATE (?:ONLY )?(?P<table>{NAME}) (?:\* )?(?:(?:AS )?{NAME} )??SET (?P<set>.*?)(?= FROM | WHERE | RETURNING |$)"
)
WRITTEN = re.compile(r"""(["'])(\d+)\1""")
TIDY = re.compile(r"(?<=[(\[]) | (?=[)\],])")
SET_COLUMN = re.compile(rf"(?:^|, )(?P<column>{NAME}) =")
CONDITION = re.compile(r"(?:CREATE|DROP|ALTER) .*\bIF (?:NOT )?EXISTS\b")
KIND = (
    r"(?P<kind>(?:FOREIGN )?TABLE|INDEX|(?:MATERIALIZED )?VIEW|SEQUENCE|SCHEMA|EXTENSION|TYPE|DOMAIN|FUNCTION|PROCEDURE"
    r"|AGGREGATE|TRIGGER|POLICY|RULE|COLLATION|STATISTICS)"
)
MADE = re.compile(
    rf"CREATE (?:(?:UNIQUE|UNLOGGED|RECURSIVE|CONSTRAINT) )*{KIND} (?:CONCURRENTLY )?(?:IF NOT EXISTS )?"
    rf"(?!ON |AUTHORIZATION |\()(?P<names>{NAME})"
)
DROPPED = re.compile(rf"DROP {KIND} (?:CONCURRENTLY )?(?:IF EXISTS )?(?P<names>{NAME}(?: , {NAME})*)")
ADDED_OR_DROPPED = re.compile(
    rf"(?P<verb>ADD|DROP) (?!CHECK\b|UNIQUE\b|PRIMARY\b|FOREIGN\b|EXCLUDE\b)(?:(?P<kind>COLUMN|CONSTRAINT) )?"
    rf"(?:IF (?:NOT )?EXISTS )?(?P<name>{NAME})"
)
DROP = re.compile(r"\bDROP\b")
ON_TABLE = re.compile(rf" ON (?P<table>{NAME})")
SEPARATED = re.compile(r"[^ ,;](?:(?! [,;](?: |$)).)*")


class Build(NamedTuple):
    """An index that a statement builds concurrently, and its table; both as SQL identifiers."""

    name: str
    table: str


class Object(NamedTuple):
    """What a statement makes, changes or drops; ``table`` and ``name`` are quoted as in the statement."""

    kind: str
    table: str
    name: str = ""

    def __str__(self) -> str:
        names = (name.replace('"', "") for name in (self.name, self.table) if name)
        return f"{self.kind} {' on '.join(names)}"


class Statement:
    """One statement. ``text`` is all between two semicolons, and the second of them."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens that are neither space nor comment, as they are written, without leading semicolons."""
        return list(self._said)

    @cached_property
    def outline(self) -> str:
        """The words in capitals, one space between them; each quoted name or string is its number in such quotes."""
        marks = {'"': '"', "'": "'", "$": "'"}
        words = [
            f"{mark}{number}{mark}" if (mark := marks.get(token[-1])) else token.translate(UPPER)
            for number, token in enumerate(self.tokens)
        ]
        return " ".join(words).replace(" . ", ".")

    @cached_property
    def flat(self) -> str:
        """The outline with every word within brackets replaced by as many ``~``, so that no position changes."""
        words, depth = list[str](), 0
        for word in self.outline.split(" "):
            depth -= word in {")", "]"}
            words.append("~" * len(word) if depth > 0 else word)
            depth += word in {"(", "["}
        return " ".join(words)

    def written(self, outlined: str) -> str:
        """Return a part of the outline as the statement writes it, with unquoted words in small letters."""
        tidy = TIDY.sub("", outlined).translate(LOWER)
        return WRITTEN.sub(lambda found: self.tokens[int(found[2])], tidy)

    @property
    def actions(self) -> "list[Statement]":
        """The actions of an ALTER TABLE, one by one."""
        altered = ALTERED.match(self.flat)
        found = SEPARATED.finditer(self.flat, altered.end()) if altered else ()
        return [Statement(self.written(self.outline[one.start() : one.end()])) for one in found]

    @property
    def texts(self) -> list[str]:
        """The contents of its strings, also of dollar-quoted ones."""
        found = filter(None, map(TEXT.fullmatch, self.tokens))
        return [one[2] if one[1] else one[2].replace("''", "'") for one in found]

    @cached_property
    def verb(self) -> str:
        """The first word, in capitals; empty if there is none."""
        return next(self._said, "").translate(UPPER)

    @property
    def controls_transaction(self) -> bool:
        """Whether it begins or ends a transaction or a savepoint."""
        return self.verb in CONTROL

    @property
    def begins_transaction(self) -> bool:
        return self.verb in {"BEGIN", "START"}

    @property
    def ends_transaction(self) -> bool:
        return self.controls_transaction and ENDS.match(self.outline) is not None

    @property
    def concerns_savepoint(self) -> bool:
        return self.controls_transaction and not self.begins_transaction and not self.ends_transaction

    @property
    def leans_on_others(self) -> bool:
        """Whether it has an effect only together with other statements of its transaction."""
        return self.controls_transaction or LEANS_ON_OTHERS.match(self.outline) is not None

    @property
    def is_about_more_than_a_database(self) -> bool:
        """Whether it makes, changes or drops a database or an object of the whole server."""
        return self.verb in {"CREATE", "ALTER", "DROP"} and OF_THE_SERVER.match(self.outline) is not None

    @property
    def is_patient(self) -> bool:
        """Whether it may wait and run for long: it is CONCURRENTLY or only validates constraints.

        Neither blocks reads or writes
        (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).
        """
        if not self._may_be_patient:
            return False
        return CONCURRENT.match(self.outline) is not None or ONLY_VALIDATES.fullmatch(self.outline) is not None

    @property
    def build(self) -> Build | None:
        """The index that it builds concurrently, if it names the index."""
        found = BUILD.match(self.outline) if self._may_be_patient else None
        build = Build(self.written(found["name"]), self.written(found["table"])) if found else None
        return None if "&" in "".join(build or ()) else build  # no function of PostgreSQL reads U&"…"

    @property
    def builds_unnamed_on(self) -> str:
        """The table, or an index of it, whose indexes it builds concurrently under names that PostgreSQL chooses."""
        found = BUILD_UNNAMED.match(self.outline) if self.is_patient else None
        name = self.written(found["name"]) if found else ""
        return "" if "&" in name else name

    @property
    def objects(self) -> list[Object]:
        """What it makes or drops; nothing if it does not name everything. Names that need no quotes have none."""
        return [object for object, _ in self.changes]

    @cached_property
    def changes(self) -> list[tuple[Object, bool]]:
        """Each of its ``objects``, and whether it makes it."""
        if altered := ALTERED.match(self.outline):
            table = self._plain(altered["table"])
            parts = [(action, ADDED_OR_DROPPED.match(action.outline)) for action in self.actions]
            named = [
                (Object((one["kind"] or "column").lower(), table, action._plain(one["name"])), one["verb"] == "ADD")
                for action, one in parts
                if one
            ]
            return named if len(named) == len(parts) else []
        found = MADE.match(self.outline) or DROPPED.match(self.outline)
        if found is None:
            return []
        on = ON_TABLE.search(self.outline, found.end()) if found["kind"] in {"TRIGGER", "POLICY"} else None
        table, makes = self._plain(on["table"]) if on else "", self.verb == "CREATE"
        return [
            (Object(found["kind"].lower(), table, self._plain(name)), makes) for name in found["names"].split(" , ")
        ]

    @property
    def _said(self) -> Iterator[str]:
        said = (token for kind, token in _tokens(self.text) if _says_something(kind))
        return dropwhile(";".__eq__, said)

    @cached_property
    def _may_be_patient(self) -> bool:
        text = self.text.upper()
        return "CONCURRENTLY" in text or "VALIDATE" in text

    def _plain(self, outlined: str) -> str:
        name = self.written(outlined)
        return name[1:-1] if NEEDS_NO_QUOTES.fullmatch(name) else name


def text_of(sql: Any, connection: BaseDatabaseWrapper) -> str:
    """Return the text of what ``cursor.execute`` takes, a string, bytes or psycopg.sql, without its parameters."""
    if isinstance(sql, Composable):
        return sql.as_string(connection.connection)
    return sql.decode(errors="replace") if isinstance(sql, bytes) else str(sql)


def split(sql: str) -> list[Statement]:
    """Cut the string into its statements, without empty ones."""
    if not SEVERAL.search(sql):
        return [Statement(sql)]
    texts, words = list[str](), list[str]()
    start = end = brackets = blocks = 0
    for kind, token in _tokens(sql):
        end += len(token)
        if not _says_something(kind):
            continue
        word = token.translate(UPPER)
        words.append(word)
        brackets += (word in {"(", "["}) - (word in {")", "]"})
        blocks += words[-2:] == ["BEGIN", "ATOMIC"] or (blocks and (word == "CASE") - (word == "END"))
        if word == ";" and not brackets and not blocks:
            texts.append(sql[start:end])
            start, words = end, []
    return [one for one in map(Statement, [*texts, sql[start:]]) if one.verb]


def pieces(sql: str) -> list[str]:
    """Cut the string into pieces that may be sent one after the other, each with its own limits.

    A piece is a transaction: PostgreSQL makes one of a string up to each COMMIT and its end
    (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT). One with a patient
    statement, which would keep its locks meanwhile, is cut between statements, unless they lean on one another.
    """
    if not MATTERS.search(sql):
        return [sql]
    transactions: list[list[Statement]] = [[]]
    for statement in split(sql):
        transactions[-1].append(statement)
        if statement.ends_transaction:
            transactions.append([])
    cut = list[str]()
    for statements in filter(None, transactions):
        texts = [statement.text for statement in statements]
        alone = any(one.is_patient for one in statements) and not any(one.leans_on_others for one in statements)
        cut += texts if alone else ["".join(texts)]
    return cut


def of_raw_sql(sql: Any) -> list[Statement]:
    """Return the statements of ``RunSQL``: of a string, or of a list of strings and of (string, parameters)."""
    each = [sql] if isinstance(sql, str) else [one if isinstance(one, str) else one[0] for one in sql]
    return [statement for text in each for statement in split(text)]


def quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def objects(sql: str) -> tuple[Object, ...]:
    """Return what the string makes or drops; nothing if one of its statements does not name it."""
    each = [statement.objects for statement in split(sql) if not statement.controls_transaction]
    return tuple(object for objects in each for object in objects) if all(each) else ()


def drops(sql: str) -> bool:
    """Whether a statement of the string drops anything."""
    return "DROP" in sql.upper() and any(DROP.search(one.outline) for one in split(sql))


def has_condition(sql: str) -> bool:
    """Whether a statement of the string makes or drops something IF EXISTS or IF NOT EXISTS."""
    return "EXISTS" in sql.upper() and any(CONDITION.match(one.outline) for one in split(sql))


def is_patient(sql: str) -> bool:
    """Whether the string is one patient statement."""
    statements = split(sql) if MATTERS.search(sql) else []
    return len(statements) == 1 and statements[0].is_patient


def holds_up(sql: str) -> bool:
    """Whether other sessions queue behind a statement of the string while it waits for a table lock."""
    return MAY_HOLD_UP.search(sql) is not None and any(one.verb in HOLDING_UP for one in split(sql))


def only_adds(sql: str) -> bool:
    """Whether no statement of the string can change or drop what existed before, unless it calls code."""
    return all(
        one.verb in {*ADDING, "REINDEX"}
        or (one.verb == "CREATE" and "OR REPLACE" not in one.outline)
        or ONLY_VALIDATES.fullmatch(one.outline)
        for one in split(sql)
    )


def may_commit_on_its_way(sql: str) -> bool:
    """Whether it is a CALL, or a DO that contains COMMIT, ROLLBACK or CALL, and so may commit and then fail."""
    verb = Statement(sql).verb
    return verb == "CALL" or (verb == "DO" and COMMITS_ON_ITS_WAY.search(sql) is not None)


def commits(sql: str) -> bool:
    """Whether a statement of the string ends a transaction."""
    return MATTERS.search(sql) is not None and any(one.ends_transaction for one in split(sql))


def _tokens(sql: str) -> Iterator[tuple[Any, str]]:
    """Yield the kind and the text of each token; unlike in sqlparse, comments nest."""
    at = 0
    while at < len(sql):
        for kind, token in LEXER.get_tokens(sql[at:]):  # type: ignore[no-untyped-call]
            nested = kind in kinds.Comment.Multiline and "/*" in token[2:]
            text = sql[at : _end_of_comment(sql, at)] if nested else token
            at += len(text)
            yield kind, text
            if nested:
                break


def _end_of_comment(sql: str, start: int) -> int:
    depth = 0
    for mark in COMMENT_MARK.finditer(sql, start):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return len(sql)


def _says_something(kind: Any) -> bool:
    return kind not in kinds.Whitespace and kind not in kinds.Comment
