"""Which rules are there, and what does a migration that breaks one look like? Each rule is data and one function.

The id serves the rule, its documentation, its two examples and the test that runs them, and is never used for another
rule. ``E1xx`` blocks, ``E2xx`` breaks the running code, ``E3xx`` cannot be undone or run again, ``W4xx`` advises.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.core.checks import ERROR, WARNING, CheckMessage

from ..apps import NAME
from .facts import Direction, Lock, Pass, Statement, Trace
from .names import Name


class Spot(NamedTuple):
    """Where a migration breaks a rule: ``values`` fill the gaps of the rule's sentences."""

    passed: Pass | None
    operation: int | None = None
    statement: Statement | None = None
    table: str = ""
    lock: Lock | None = None
    values: dict[str, Any] = {}


Judge = Callable[[Trace], Iterator[Spot]]


@dataclass(frozen=True)
class Rule:
    """What is wrong, in the words of its documentation.

    Attributes:
        id: such as E101.
        title: what happens, in a few words.
        condition: when it applies.
        effect: what users notice; has gaps such as {table}.
        instead: what to write, with the user's own names in the gaps; {forth} and {back} are ``sql`` and
            ``reverse_sql``, or on the way down the other way round.
        back: what to write instead on the way down, if that is not the same.
        bad: the body of a migration that breaks it, and ``good`` one that does the same without.
        judge: finds where a migration breaks it.
    """

    id: str
    title: str
    condition: str
    effect: str
    instead: str
    back: str
    bad: str
    good: str
    judge: Judge

    def level(self, direction: Direction | None) -> int:
        """Return an error's level, or a warning's: so long as all goes well, nobody waits for a way down."""
        is_warning = self.id.startswith("W") or (self.id.startswith("E1") and direction == Direction.DOWN)
        return WARNING if is_warning else ERROR

    @property
    def check_id(self) -> str:
        """The id for Django's ``SILENCED_SYSTEM_CHECKS``."""
        return f"zero_downtime.{self.id}"


@dataclass(frozen=True)
class Violation:
    """One rule broken in one place."""

    rule: Rule
    app: str
    migration: str
    direction: Direction | None
    operation: int | None
    statement: str
    table: str
    lock: str
    blocks: str
    scans: bool
    rewrites: bool
    message: str
    hint: str
    path: str

    @property
    def level(self) -> int:
        return self.rule.level(self.direction)

    def as_check(self) -> CheckMessage:
        """As Django's system checks say it."""
        return CheckMessage(
            self.level, self.message, hint=self.hint, obj=f"{self.app}.{self.migration}", id=self.rule.check_id
        )


RULES: dict[str, Rule] = {}

FORWARDS = {"forth": "sql", "back": "reverse_sql", "makes": "makes", "drops": "drops"}
BACKWARDS = {"forth": "reverse_sql", "back": "sql", "makes": "drops", "drops": "makes"}
"""How a recipe is written for the way up, and for the way down."""
IN_GENERAL = FORWARDS | {"unique": "", "body": "(<columns>)", "kind": "UNIQUE", "deferral": ""}
"""How it is written where nobody has broken the rule."""


def as_told(one: Violation) -> dict[str, Any]:
    """Return what JSON lets through, of which ``as_found`` makes a violation again."""
    return {**vars(one), "rule": one.rule.id}


def as_found(told: dict[str, Any]) -> Violation:
    direction = Direction(told["direction"]) if told["direction"] else None
    return Violation(**{**told, "rule": RULES[told["rule"]], "direction": direction})


def rule(
    id: str, title: str, *, condition: str, effect: str, instead: str, back: str = "", bad: str = "", good: str = ""
) -> Callable[[Judge], Judge]:
    """Register the decorated function as the judge of a rule.

    Raises:
        ValueError: if another rule has the id.
    """
    if id in RULES:
        raise ValueError(id)

    def register(judge: Judge) -> Judge:
        examples = bad.strip("\n"), good.strip("\n")
        RULES[id] = Rule(id, title, condition, effect, instead, back or instead, *examples, judge)
        return judge

    return register


class Gap(str):
    """A gap for which there is no value, however it is to be filled."""

    def __format__(self, how: str) -> str:
        return str(self)


def filled(sentence: str, values: Mapping[str, Any], *, gap: str = "<%s>") -> str:
    """Fill the gaps of a rule's sentence; one for which there is no value has its own name, written as in ``gap``."""

    class Values(dict[str, Any]):
        def __missing__(self, name: str) -> str:
            return Gap(gap % name)

    named = {key: Name(value) if type(value) is str else value for key, value in values.items()}
    return sentence.format_map(Values(engine=NAME, **named))


def violations(trace: Trace, rules: Iterable[str] = RULES) -> list[Violation]:
    """Return what these rules find in a trace, without regard to waivers."""
    return [violation(RULES[id], trace, spot) for id in rules for spot in RULES[id].judge(trace)]


def violation(rule: Rule, trace: Trace, spot: Spot) -> Violation:
    statement, lock = spot.statement, spot.lock
    operation = statement.operation if statement and spot.operation is None else spot.operation
    text = " ".join(statement.sql.split()) if statement else ""
    direction = spot.passed.direction if spot.passed else None
    is_down = direction == Direction.DOWN
    model = trace.running.get(spot.table) or trace.written.get(spot.table)
    values = {
        "table": spot.table,
        "label": model._meta.label if model else spot.table,
        "model": model._meta.object_name if model else spot.table,
        "statement": text[:300],
        "lock": lock.sql if lock else "",
        "blocks": lock.blocks if lock else "",
        "app": trace.migration.app_label,
        "migration": trace.migration.name,
        "column": "column",
        "columns": "columns",
        "name": "name",
        **(BACKWARDS if is_down else FORWARDS),
        **spot.values,
    }
    column, columns = values["column"], values["columns"]
    written = trace.written.get(spot.table)
    named = {str(field.column): field.name for field in written._meta.local_concrete_fields} if written else {}
    values |= {
        "field": named.get(column, column),
        "column_length": f"{column}_length",
        "table_columns": "_".join([spot.table, *getattr(columns, "names", [columns])]),
    }
    return Violation(
        rule,
        trace.migration.app_label,
        trace.migration.name,
        direction,
        operation,
        text,
        spot.table,
        values["lock"],
        values["blocks"],
        bool(statement and spot.table in statement.scans),
        bool(statement and spot.table in statement.rewrites),
        filled(rule.effect, values),
        filled(rule.back if is_down else rule.instead, values).strip("\n"),
        trace.path,
    )
