"""Which rules are there, and what does a migration that breaks one look like?

Each rule is a text and a function. The text stands in ``rules/*.toml``: the messages and RULES.md are written from it,
and the tests run its two examples. The function, its judge, stands in the Python file beside it. An id is never used
for another rule. ``E1xx`` blocks, ``E2xx`` breaks the running code, ``E3xx`` cannot be undone or run again, ``W4xx``
advises.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from django.core.checks import ERROR, WARNING

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


Judge = Callable[..., Iterator[Spot]]
AnyJudge = TypeVar("AnyJudge", bound=Judge)


@dataclass(frozen=True)
class Rule:
    """What is wrong, in the words of its documentation.

    Attributes:
        id: such as E101.
        judge: finds where a migration breaks it.
        title: what happens, in a few words.
        condition: when it applies.
        effect: what users notice; has gaps such as {table}.
        instead: what to write, with the user's own names in the gaps; {forth} and {back} are ``sql`` and
            ``reverse_sql``, or on the way down the other way round.
        back: what to write instead on the way down, if that is not the same.
        bad: the body of a migration that breaks it.
        good: the body of one that does the same without.
    """

    id: str
    judge: Judge
    title: str
    condition: str
    effect: str
    instead: str
    back: str = ""
    bad: str = ""
    good: str = ""

    def level(self, direction: Direction | None) -> int:
        """Return the level. On the way down, an E1xx is a warning: most migrations never go down."""
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


RULES: dict[str, Rule] = {}
JUDGES: dict[str, Judge] = {}

FORWARDS = {"forth": "sql", "back": "reverse_sql", "makes": "makes", "drops": "drops"}
BACKWARDS = {"forth": "reverse_sql", "back": "sql", "makes": "drops", "drops": "makes"}
"""How a recipe is written for the way up, and for the way down."""
IN_GENERAL = FORWARDS | {"unique": "", "body": "(<columns>)", "kind": "UNIQUE", "deferral": ""}
"""How a recipe is written in RULES.md, where there is no violation."""


def as_told(one: Violation) -> dict[str, Any]:
    """Return a violation in a form that JSON can carry; ``as_found`` makes a violation of it again."""
    return {**vars(one), "rule": one.rule.id}


def as_found(told: dict[str, Any]) -> Violation:
    direction = Direction(told["direction"]) if told["direction"] else None
    return Violation(**{**told, "rule": RULES[told["rule"]], "direction": direction})


def rule(*ids: str) -> Callable[[AnyJudge], AnyJudge]:
    """Register the decorated function as the judge of a rule; a judge of several rules is told the ``id``.

    Raises:
        ValueError: if a rule has another judge.
    """

    def register(judge: AnyJudge) -> AnyJudge:
        for id in ids:
            if id in JUDGES:
                raise ValueError(f"{_named(JUDGES[id])} and {_named(judge)} both judge {id}. Give one another id.")
            JUDGES[id] = judge if len(ids) == 1 else update_wrapper(partial(judge, id=id), judge)
        return judge

    return register


def _named(judge: Judge) -> str:
    return f"{judge.__module__}.{judge.__qualname__}"


def read(folder: Path, judges: Mapping[str, Judge] = JUDGES) -> dict[str, Rule]:
    """Join the rules that are written in the TOML files of a folder with their judges.

    Raises:
        ValueError: if a rule has no judge or is written wrongly, or a judge has no rule.
    """
    rules: dict[str, Rule] = {}
    for path in sorted(folder.glob("*.toml")):
        for id, written in tomllib.loads(path.read_text(encoding="utf-8")).items():
            where = f"Rule {id} in {path.name}"
            if id in rules:
                raise ValueError(f"{where} is written in another file, too. Give one of them another id.")
            if id not in judges:
                raise ValueError(f'{where} has no judge. Write one in {path.stem}.py, under @rule("{id}").')
            try:
                texts = {key: text.strip("\n") for key, text in written.items()}
                texts |= {key: " ".join(texts[key].split()) for key in ("title", "condition", "effect")}
                rules[id] = Rule(id, judges[id], **texts)
            except (TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{where} is not written as a rule is: {error}.") from error
    for id in sorted(judges.keys() - rules.keys()):
        raise ValueError(f"{_named(judges[id])} judges {id}, which no TOML file in {folder} has. Write it there.")
    return dict(sorted(rules.items()))


class Gap(str):
    """A gap without a value, the same in every format."""

    def __format__(self, how: str) -> str:
        return str(self)


def filled(sentence: str, values: Mapping[str, Any], *, gap: str = "<%s>") -> str:
    """Fill the gaps of a rule's sentence. A gap without a value shows its own name, in the form of ``gap``."""

    class Values(dict[str, Any]):
        def __missing__(self, name: str) -> str:
            return Gap(gap % name)

    named = {key: Name(value) if type(value) is str else value for key, value in values.items()}
    return sentence.format_map(Values(engine=NAME, **named))


def violations(trace: Trace, rules: Iterable[str] = RULES) -> list[Violation]:
    """Return what these rules find in a trace, waived or not."""
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
        filled((is_down and rule.back) or rule.instead, values),
        trace.path,
    )
