"""How are violations shown: as text, JSON, annotations of GitHub or SARIF? And how does RULES.md show the rules?"""

import json
from collections.abc import Iterable, Iterator

from django.core.checks import ERROR
from django.core.management.color import Style

from ..apps import NAME
from .facts import Pass, Trace
from .registry import IN_GENERAL, RULES, Rule, Violation, filled

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
WIDTH = 72  # of a statement in the table of a trace

HEADINGS = {
    "E1": "E1xx: users wait",
    "E2": "E2xx: running code breaks",
    "E3": "E3xx: it does not run, cannot be undone or run again",
    "W4": "W4xx: advice",
}
INTRODUCTION = f"""# Rules of lintmigrations

This page is written by `python manage.py lintmigrations --rules`; each example on it is run by the tests. Tables of
before are those that were there before the migration, or before the deploy that it is part of: only they have users.
In the examples, `shop_order` and `shop_customer` are such tables.

A migration that breaks a rule on purpose says so, and why:

```python
from {NAME}.operations import IgnoreRules

operations = [
    IgnoreRules("E103", reason="The table has twelve rows."),  # on the way up; on the way down: direction="down"
    …
]
```

On the way down, an E1xx is a warning: so long as all goes well, nobody waits for it.

With `--unapplied`, a violation says how many rows its table has in the configured database, as the last ANALYZE has
counted them, and how large it is. That makes no error a warning: a table that is small there may be large elsewhere, or
by the time that the migration is applied. Whoever knows that it stays small says so by `IgnoreRules`.
"""


def text(found: Iterable[Violation], style: Style) -> Iterator[str]:
    """Yield lines for people, migration by migration, each hint once."""
    migration, said = "", set[str]()
    for one in found:
        key = f"{one.app}.{one.migration}"
        if key != migration:
            migration, said = key, set()
            yield style.MIGRATE_HEADING(one.path or key)
        paint = style.ERROR if one.level >= ERROR else style.WARNING
        yield "  " + paint(f"{one.rule.id} {one.rule.title}") + f" ({place(one)})"
        yield f"    {one.message}"
        if one.hint not in said:
            said.add(one.hint)
            yield from (f"      {line}".rstrip() for line in one.hint.splitlines())
        yield ""


def place(one: Violation) -> str:
    """Say where in the migration it is: ``up, operation 2``, counted from 1."""
    where = [one.direction or "", "" if one.operation is None else f"operation {one.operation + 1}"]
    return ", ".join(part for part in where if part) or "the file"


def as_json(found: Iterable[Violation]) -> Iterator[str]:
    """Yield one object a line."""
    for one in found:
        told = {"id": one.rule.check_id, "level": level(one), **vars(one)}
        del told["rule"]
        yield json.dumps(told)


def level(one: Violation) -> str:
    return "error" if one.level >= ERROR else "warning"


def github(found: Iterable[Violation]) -> Iterator[str]:
    """Yield workflow commands that annotate the changed files of a pull request."""

    def escaped(value: str) -> str:
        return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    for one in found:
        title = escaped(f"{one.rule.id} {one.rule.title}").replace(":", "%3A").replace(",", "%2C")
        body = escaped(f"{one.app}.{one.migration} ({place(one)})\n{one.message}\n\n{one.hint}")
        yield f"::{level(one)} file={escaped(one.path)},line=1,title={title}::{body}"


def sarif(found: Iterable[Violation]) -> Iterator[str]:
    """Yield one document of the Static Analysis Results Interchange Format 2.1.0."""
    rules = [
        {
            "id": rule.check_id,
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": rule.condition},
            "help": {"text": filled(rule.instead, IN_GENERAL)},
        }
        for rule in RULES.values()
    ]
    results = [
        {
            "ruleId": one.rule.check_id,
            "level": level(one),
            "message": {"text": f"{one.message}\n\n{one.hint}"},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": one.path}, "region": {"startLine": 1}},
                    "logicalLocations": [{"fullyQualifiedName": f"{one.app}.{one.migration}"}],
                }
            ],
        }
        for one in found
    ]
    tool = {"driver": {"name": "lintmigrations", "rules": rules}}
    yield json.dumps(
        {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": tool, "results": results}]}, indent=2
    )


def explanation(trace: Trace) -> Iterator[str]:
    """Yield a table of the statements that a migration sent, up and down."""
    yield f"{trace.migration}  {trace.path}"
    for passed in trace.passes:
        yield from _pass(passed)
    if trace.down is None:
        yield "down: cannot be undone" if trace.up.failure is None else "down: not tried"
    yield ""


def _pass(passed: Pass) -> Iterator[str]:
    yield f"{passed.direction}:"
    for statement in passed.statements:
        sql = " ".join(statement.sql.split())
        sql = f"(with rows) {sql}" if statement.rehearsed else sql
        sql = sql if len(sql) <= WIDTH else f"{sql[:WIDTH]}…"
        yield f"  {statement.operation + 1:>3} t{statement.transaction:<4} {sql}"
        for lock in statement.takes:
            yield f"            takes {lock.sql} on {lock.table}, blocks {lock.blocks or 'nobody who reads or writes'}"
        known = {"scans": statement.scans, "rewrites": statement.rewrites, "writes": statement.writes}
        for what, tables in known.items():
            if tables:
                yield f"            {what} {', '.join(tables)}"
        for change in statement.changes:
            became = "new" if change.before is None else "gone" if change.after is None else "changed"
            yield f"            {change.kind} {change.name} of {change.table} is {became}"
    if not passed.statements:
        yield "  sends nothing"
    if passed.failure:
        yield f"  fails in operation {passed.failure.operation + 1}: {passed.failure.message}"


def document() -> str:
    """Return all rules as a Markdown page."""
    parts, heading = [INTRODUCTION], ""
    for id, rule in RULES.items():
        if HEADINGS[id[:2]] != heading:
            heading = HEADINGS[id[:2]]
            parts.append(f"## {heading}\n")
        parts.append(_section(rule))
    return "\n".join(parts)


def _section(rule: Rule) -> str:
    lines = [
        f"### {rule.id}: {rule.title}\n",
        f"When: {rule.condition}\n",
        f"> {filled(rule.effect, {}, gap='*%s*')}\n",
    ]
    lines.append(f"```\n{filled(rule.instead, IN_GENERAL)}\n```\n")
    for word, example in (("Bad", rule.bad), ("Good", rule.good)):
        if example:
            lines.append(f"{word}:\n\n```python\n{example}\n```\n")
    return "\n".join(lines)
