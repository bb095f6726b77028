"""W4xx: what does no harm today, and may later? Here: files, waivers, what could not be judged, and indexes."""

import re
import time
from collections.abc import Iterator

from ...backfills.declarations import declared
from ...operations import RunBackfill
from ...postgres.changes import columns_set
from ...postgres.statements import split
from ..facts import Index, Pass, Statement, Trace
from ..registry import Spot, rule
from .locks import STRONGEST, cause, recipe_of, statements
from .running_code import altered, spot
from .transactions import in_batches

NAME = re.compile(r"\d{14}_[a-z][a-z0-9_]*")
ABSENT = re.compile(
    r'00000 (?P<kind>(?:foreign )?table|(?:materialized )?view|relation|schema) "(?P<name>.*)" does not exist, skipping'
)
BY_KEY = re.compile(
    r"""\b(?P<column>\w+)"?\s*(?:=\s*(?:ANY\s*\(|%s|\d+|'[^']*')|IN\s*\((?!\s*SELECT))""", re.IGNORECASE
)


@rule("W401")
def not_judged(trace: Trace) -> Iterator[Spot]:
    failure = trace.up.failure
    if failure and failure.environment:
        yield Spot(trace.up, failure.operation, values={"why": failure.message})
    elif trace.because_of:
        why = f"it depends on a migration that did not run to its end: {trace.because_of}. Without that one it "
        why += f"fails: {failure.message}" if failure else "runs, but maybe not on what it would find elsewhere."
        yield Spot(trace.up, failure.operation if failure else None, values={"why": why})
    elif trace.down and trace.down.failure and trace.down.failure.environment:
        yield Spot(trace.down, trace.down.failure.operation, values={"why": trace.down.failure.message})
    for passed in trace.passes:
        for missed in passed.missed:
            yield Spot(passed, missed.operation, values={"why": missed.message})
        for statement in changing_none(trace, passed):
            why = f"no made-up row is as this wants it, so how many it changes was not seen: {statement.sql[:100]}"
            yield Spot(passed, None, statement, statement.writes[0], values={"why": why})
    for statement in trace.up.statements:
        for absent in filter(None, map(ABSENT.fullmatch, statement.notices)):
            if absent["name"] not in trace.tables:
                why = f"there is no {absent['kind']} {absent['name']} in the scratch database, so what happens to one"
                yield Spot(trace.up, None, statement, values={"why": f"{why} was not seen: {statement.sql[:100]}"})


def changing_none(trace: Trace, passed: Pass) -> Iterator[Statement]:
    """Yield the statements that searched an index for rows to change and found none of the made-up ones.

    A statement that names the keys of its rows changes no other rows, so it is left out.
    """
    rehearsed = [one for one in passed.statements if one.rehearsed and one.writes]
    known = {one.sql for one in rehearsed if one.rows}
    for statement in rehearsed:
        if statement.sql not in known and not statement.scans and not in_batches(trace, statement.operation):
            known.add(statement.sql)
            verb, where = split(statement.sql)[0].verb, statement.sql.upper().partition("WHERE")[2]
            table = trace.tables.get(statement.writes[0])
            uniques = {index.columns for index in table.indexes.values() if index.unique} if table else set()
            named = {(found["column"].lower(),) for found in BY_KEY.finditer(where)}
            is_by_key = named & uniques and not re.search(r"\bOR\b", where)
            if verb in {"UPDATE", "DELETE"} and not is_by_key:
                yield statement


@rule("W402")
def unused_waiver(trace: Trace) -> Iterator[Spot]:
    """Yield nothing: ``judge`` applies the waivers, and knows which are not used."""
    yield from ()


@rule("W409")
def name_without_time(trace: Trace) -> Iterator[Spot]:
    if trace.own and not _has_time(trace.migration.name):
        yield Spot(None)


def _has_time(name: str) -> bool:
    try:
        time.strptime(name[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return False
    return NAME.fullmatch(name) is not None


@rule("W410")
def name_too_early(trace: Trace) -> Iterator[Spot]:
    name = trace.migration.name
    if trace.own and _has_time(name):
        for _, other in trace.migration.dependencies:
            if _has_time(other) and other >= name:
                yield Spot(None, values={"other": other})


@rule("W411")
def index_dropped(trace: Trace) -> Iterator[Spot]:
    new = {c.name for s in trace.up.statements for c in s.changes if cause(s, c.table) in {"E103", "E104", "E113"}}
    for passed, statement in statements(trace):
        for change in statement.changes:
            before, lock = change.before, statement.held.get(change.table)
            others = any(c.kind == "column" and c.table == change.table for c in statement.changes)
            if not isinstance(before, Index) or before.constraint or change.after or others or change.name in new:
                continue
            alike = (c.after for c in statement.changes if c.table == change.table and isinstance(c.after, Index))
            if recipe_of(before)["body"] in (recipe_of(index)["body"] for index in alike):  # the index was renamed
                continue
            if lock and lock.mode == STRONGEST:
                yield Spot(passed, None, statement, change.table, lock, recipe_of(before))


@rule("W417")
def index_gone_too_early(trace: Trace) -> Iterator[Spot]:
    gone: dict[tuple[str, str], tuple[str, int]] = {}
    for statement in trace.up.statements:
        for change in statement.changes:
            old, new = change.before, change.after
            if isinstance(old, Index) and new is None:
                gone[change.table, old.columns[0]] = change.name, statement.transaction
            elif isinstance(new, Index) and old is None and change.table in trace.tables:
                column = new.columns[0]
                name, transaction = gone.get((change.table, column), ("", statement.transaction))
                others = [index for index in trace.tables[change.table].indexes.values() if index.name != change.name]
                serve = any(one.valid and not one.partial and one.columns[0] == column for one in others)
                if transaction != statement.transaction and column and not serve:
                    values = {"name": change.name, "column": column, "old": name}
                    yield Spot(trace.up, None, statement, change.table, None, values)


@rule("W414")
def null_allowed(trace: Trace) -> Iterator[Spot]:
    for change, field, old, new in altered(trace):
        if old.not_null and not new.not_null and not field.null:
            yield spot(trace, change, column=change.name)


@rule("W416")
def filled_after_its_index(trace: Trace) -> Iterator[Spot]:
    filled: dict[tuple[str, str], Statement | None] = dict.fromkeys(backfilled(trace))
    for one in trace.up.statements:
        places = dict.fromkeys(set_by(one), one)
        if places.keys() <= trace.indexed.keys():  # save() also sets columns that were filled long ago
            filled |= places
    for (table, column), statement in filled.items():
        index, other = trace.indexed.get((table, column), ("", ""))
        if table in trace.tables and index in trace.tables[table].indexes:
            yield Spot(trace.up, None, statement, table, None, {"column": column, "name": index, "other": other})


def backfilled(trace: Trace) -> Iterator[tuple[str, str]]:
    """Yield the tables and columns that the backfills of the migration say they change."""
    for operation in () if trace.up.failure else trace.migration.operations:
        if type(operation) is RunBackfill:
            declaration = declared(operation.name)
            meta = trace.written.named(declaration.model)._meta
            columns = {field.name: str(field.column) for field in meta.concrete_fields}
            yield from ((meta.db_table, columns[name]) for name in declaration.update if name in columns)


def set_by(statement: Statement) -> Iterator[tuple[str, str]]:
    """Yield the tables and columns that its UPDATEs set."""
    for one in split(statement.sql):
        yield from columns_set(one)
