"""E1xx, continued: which statements share a transaction and make a brief lock a long one?"""

from collections.abc import Iterator
from itertools import groupby, product

from django.db.migrations import RunPython

from ...operations import RequireBackfill, RunBackfill
from ..facts import Direction, Lock, Pass, Statement, Trace
from ..registry import Spot, rule
from ..rows import HALF
from .locks import STRONGEST, cause, statements


@rule("E108")
def works_under_lock(trace: Trace) -> Iterator[Spot]:
    for passed, sent in transactions(trace):
        for statement in sent:
            touched = {*statement.scans, *statement.rewrites, *statement.writes}
            before = [lock for lock in statement.holds if lock.mode == STRONGEST and lock not in statement.takes]
            if before and any(cause(statement, table) in {"", "E108"} for table in touched):
                yield Spot(passed, None, statement, before[0].table, before[0])
                break


@rule("E109")
def several_tables(trace: Trace) -> Iterator[Spot]:
    for passed, sent in transactions(trace):
        known: list[str] = []
        later: list[tuple[Statement, Lock]] = []
        for statement in sent:
            taken = [lock for lock in statement.takes if lock.mode == STRONGEST and lock.table not in known]
            if passed.direction == Direction.DOWN:  # dropping a table drops its foreign keys, too
                changed = {change.table for change in statement.changes}
                taken = [lock for lock in taken if lock.table in changed]
            if known:
                later += [(statement, lock) for lock in taken]
            else:
                known = [lock.table for lock in taken]
        if later:
            statement, lock = later[0]
            values = {"others": ", ".join(known), "later": ", ".join(dict.fromkeys(lock.table for _, lock in later))}
            yield Spot(passed, None, statement, lock.table, lock, values)


def transactions(trace: Trace) -> Iterator[tuple[Pass, list[Statement]]]:
    """Yield the statements that ran in one transaction, transaction by transaction."""
    for passed in trace.passes:
        for _, sent in groupby(passed.statements, key=lambda statement: statement.transaction):
            yield passed, list(sent)


@rule("E111")
def whole_table(trace: Trace) -> Iterator[Spot]:
    told = set()
    for passed, statement in statements(trace):
        if (
            statement.writes
            and statement.scans
            and not any(cause(statement, table) for table in statement.scans)
            and not in_batches(trace, statement.operation)
        ):
            table = statement.writes[0]
            if (passed.direction, statement.sql) not in told:
                told.add((passed.direction, statement.sql))
                yield Spot(passed, None, statement, table, statement.held.get(table))
    if not told:
        yield from row_by_row(trace)


def in_batches(trace: Trace, number: int) -> bool:
    """Whether the operation commits batch by batch where there are many rows."""
    return isinstance(trace.migration.operations[number], RunBackfill)


def row_by_row(trace: Trace) -> Iterator[Spot]:
    """Yield the operations that changed at least half of the made-up rows."""
    for passed, number in product(trace.passes, range(len(trace.migration.operations))):
        if in_batches(trace, number):
            continue
        sent = [one for one in passed.statements if one.operation == number and one.transaction >= 0]
        rehearsed = [one for one in sent if one.rehearsed and one.rows]
        more = sum(one.rows for one in rehearsed) - sum(one.rows for one in sent if not one.rehearsed)
        if more >= HALF:
            table = next((table for one in rehearsed for table in one.writes), "")
            yield Spot(passed, None, rehearsed[0], table, rehearsed[0].held.get(table))


@rule("E112")
def schema_and_data(trace: Trace) -> Iterator[Spot]:
    strong = next((s for s in trace.up.statements if s.changes or any(lock.blocks for lock in s.takes)), None)
    data = [
        number
        for number, operation in trace.operations
        if isinstance(operation, RunPython) and operation.code is not RunPython.noop
    ]
    rests = {number for number, operation in trace.operations if isinstance(operation, RequireBackfill)}
    data += [s.operation for s in trace.up.statements if s.writes and not s.changes and s.operation not in rests]
    if strong and data:
        table = next((lock.table for lock in strong.takes), "")
        yield Spot(trace.up, data[0], None, table)
