"""What does a statement change in the database?

The patterns match a whole flat outline. A statement that matches none, such as DO or CALL, is unknown.
"""

import re
from typing import NamedTuple

from .statements import ALTERED, DROPPED, NAME, SET_COLUMN, UPDATE, Statement, unquoted

UNKNOWN, NOTHING = "unknown", "nothing"

OF_STATEMENTS = {
    "drop": rf"{DROPPED.pattern}.*?(?P<cascade> CASCADE)?",
    "truncate": rf"TRUNCATE (?:TABLE )?(?P<names>{NAME}(?: , {NAME})*)(?: (?:RESTART|CONTINUE) IDENTITY)?"
    r"(?P<cascade> CASCADE)?(?: RESTRICT)?",
    "delete": rf"DELETE FROM (?:ONLY )?(?P<name>{NAME})(?: WHERE (?!CURRENT OF )(?P<condition>.*?))?",  # noqa: S608
    "fill": rf"UPDATE (?:ONLY )?(?P<name>{NAME}) SET (?P<column>{NAME}) = (?:(?! , | FROM | WHERE ).)* "  # noqa: S608
    rf"WHERE (?P<condition>(?P<asked>{NAME}) IS NULL)",
    "update": rf"UPDATE (?:ONLY )?(?P<name>{NAME}) SET (?:(?! FROM | WHERE ).)*"  # noqa: S608
    r"(?: WHERE (?!CURRENT OF )(?P<condition>.*?))?",
    "insert": rf"INSERT INTO (?P<name>{NAME})\b(?!.* DO UPDATE ).*",
    "unique": rf"CREATE UNIQUE INDEX (?:CONCURRENTLY )?(?:IF NOT EXISTS )?(?:(?!ON ){NAME} )?ON (?:ONLY )?"
    rf"(?P<table>{NAME}) (?:USING \w+ )?\( (?P<columns>.*?) \)(?: INCLUDE \( .*? \))?(?: WHERE (?P<condition>.*))?",
    "enum": rf"CREATE TYPE (?P<name>{NAME}) AS ENUM \( (?P<labels>.*?) \)",
    "rename": rf"ALTER (?:[A-Z]+ )+{NAME}(?: ON {NAME})? RENAME TO (?P<new>{NAME})",
    "trigger": r"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?(?:TRIGGER|RULE) .*",
    NOTHING: r"(?:SELECT|WITH|VALUES|TABLE|ABORT|ANALYZE|BEGIN|CHECKPOINT|CLUSTER|COMMENT|COMMIT|CREATE|END|GRANT"
    r"|LISTEN|LOCK|NOTIFY|REINDEX|RELEASE|RESET|REVOKE|ROLLBACK|SAVEPOINT|SECURITY|SHOW|START|UNLISTEN|VACUUM"
    r"|SET(?!.* (?:SEARCH_PATH|SCHEMA|SESSION_REPLICATION_ROLE)))\b.*"
    rf"|ALTER (?:INDEX|SEQUENCE|TYPE|DOMAIN|FUNCTION|TRIGGER|POLICY) (?:IF EXISTS )?{NAME}(?: ON {NAME})? "
    r"(?:RENAME|OWNER|ADD VALUE|AS)\b.*",
}
OF_ACTIONS = {
    "rename table": rf"RENAME TO (?P<new>{NAME})",
    "move table": rf"SET SCHEMA (?P<new>{NAME})",
    "rename column": rf"RENAME (?!CONSTRAINT )(?:COLUMN )?(?P<name>{NAME}) TO (?P<new>{NAME})",
    "drop constraint": rf"DROP CONSTRAINT (?:IF EXISTS )?(?P<name>{NAME})",
    "drop column": rf"DROP (?!CONSTRAINT )(?:COLUMN )?(?:IF EXISTS )?(?P<name>{NAME})(?P<cascade> CASCADE)?",
    "unique": rf"ADD (?:CONSTRAINT {NAME} )?(?:UNIQUE|PRIMARY KEY) \( (?P<columns>.*?) \)(?P<condition>)(?: .*)?",
    "check": rf"ADD (?:CONSTRAINT {NAME} )?CHECK (?P<condition>\( .*? \))",
    "key": rf"ADD (?:CONSTRAINT {NAME} )?FOREIGN KEY \( (?P<columns>.*?) \) REFERENCES (?P<target>{NAME}) "
    r"\( (?P<keys>.*?) \)(?!.* NOT VALID)(?: .*)?",
    "add column": r"ADD (?!CONSTRAINT |CHECK |UNIQUE |PRIMARY |FOREIGN |EXCLUDE |GENERATED )(?:COLUMN )?"
    rf"(?:IF NOT EXISTS )?(?P<name>{NAME}) (?P<definition>.*)",
    "convert": rf"ALTER (?:COLUMN )?(?P<name>{NAME}) (?:SET DATA )?TYPE (?P<type>.*?)(?: COLLATE {NAME})?"
    r"(?: USING (?P<using>.*))?",
    "not null": rf"ALTER (?:COLUMN )?(?P<name>{NAME}) SET NOT NULL",
    NOTHING: r"(?:ADD|RENAME|VALIDATE|OWNER|CLUSTER|ENABLE|DISABLE|(?:NO )?(?:INHERIT|FORCE)|ATTACH|DETACH|REPLICA"
    rf"|RESET)\b.*|SET\b.*|ALTER (?:COLUMN )?{NAME} (?:SET|RESET|DROP|ADD)\b(?!.* RESTART).*",
}
WRITES = re.compile(r"\b(?:DELETE FROM|INSERT INTO|MERGE INTO|(?<!FOR )(?<!KEY )UPDATE)\b")
TELLS = re.compile(r"\b(?:USING|RETURNING)\b")
HAS_VALUE = re.compile(r"\b(?:DEFAULT|GENERATED|(?:BIG|SMALL)?SERIAL\d?)\b", re.IGNORECASE)
# A name before a bracket that is not the name of a new object or of an INSERT's table.
CALL = re.compile(rf'(?<![\w".$])(?<!TABLE )(?<!INTO )(?<!ON )(?<!EXISTS )(?<!REFERENCES )(?P<name>{NAME}) \(')
ONLY_MENTIONS = re.compile(r"CREATE (?:OR REPLACE )?(?:\w+ )*?(?:FUNCTION|PROCEDURE|VIEW|TRIGGER|RULE|POLICY)\b")


class Change(NamedTuple):
    """What a statement does, or one action of an ALTER TABLE; ``said`` are the parts that the pattern names."""

    what: str
    said: dict[str, str]


def read(statement: Statement) -> list[Change]:
    """Return the changes of the statement in order."""
    if not (altered := ALTERED.match(statement.flat)):
        return [_change(statement, OF_STATEMENTS)]
    table = {"table": statement.written(altered["table"])}
    return [Change(what, said | table) for what, said in (_change(one, OF_ACTIONS) for one in statement.actions)]


def called(statement: Statement) -> list[str]:
    """Return the names of the functions that the statement may call: all names before a bracket."""
    if ONLY_MENTIONS.match(statement.outline):
        return []
    return [statement.written(found["name"]) for found in CALL.finditer(statement.outline)]


def columns_set(statement: Statement) -> list[tuple[str, str]]:
    """Return the table and each column that an UPDATE sets, without quotes and schema."""
    if statement.verb != "UPDATE" or not (update := UPDATE.match(statement.flat)):
        return []
    table = statement.written(update["table"].rpartition(".")[2])
    columns = [statement.written(found["column"]) for found in SET_COLUMN.finditer(update["set"])]
    return [(unquoted(table), unquoted(column)) for column in columns]


def _change(statement: Statement, patterns: dict[str, str]) -> Change:
    flat, outline = statement.flat.removesuffix(" ;"), statement.outline
    is_query_that_writes = statement.verb in {"SELECT", "WITH", "TABLE", "VALUES"} and WRITES.search(outline)
    tells_more = statement.verb in {"DELETE", "UPDATE"} and TELLS.search(flat)
    for what, pattern in patterns.items():
        if (found := re.fullmatch(pattern, flat)) and not is_query_that_writes and not tells_more:
            spans = {name: found.span(name) for name in found.groupdict()}
            return Change(what, {name: statement.written(outline[slice(*span)]) for name, span in spans.items()})
    return Change(UNKNOWN, {})
