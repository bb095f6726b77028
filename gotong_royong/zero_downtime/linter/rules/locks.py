"""E1xx: which locks does a statement hold while it reads or writes a whole table?

A lock for a moment is no violation: ``migrate`` takes it under its budget. A lock makes an outage if it blocks users
while the server reads or writes a whole table
(https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).
"""

import re
from collections.abc import Iterator
from typing import Any

from ...postgres.statements import split
from ..facts import Change, Column, Constraint, Index, Lock, Pass, Statement, Trace
from ..registry import Spot, rule

HOUSEKEEPING = {"VACUUM", "CLUSTER", "TRUNCATE", "REINDEX", "REFRESH"}
STRONGEST = "AccessExclusiveLock"
BEFORE_BODY = re.compile(r".*? USING btree |.*?(?=USING )", re.DOTALL)
DEFERRAL = re.compile(r"(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?$")


def statements(trace: Trace) -> Iterator[tuple[Pass, Statement]]:
    for passed in trace.passes:
        for statement in passed.statements:
            yield passed, statement


def blocking(statement: Statement, table: str) -> Lock | None:
    """Return the lock on the table that blocks reads or writes while the statement runs."""
    lock = statement.held.get(table)
    return lock if lock and lock.blocks else None


def new_index(statement: Statement, table: str) -> Index | None:
    found = (c.after for c in statement.changes if c.kind == "index" and c.table == table and not c.before)
    return next((index for index in found if isinstance(index, Index)), None)


def constraint_of(statement: Statement, index: Index) -> Constraint | None:
    """Return the new constraint that the index is for."""
    found = (c.after for c in statement.changes if c.kind == "constraint" and c.name == index.name)
    return next((one for one in found if isinstance(one, Constraint)), None)


def exclusion(statement: Statement, index: Index) -> bool:
    constraint = constraint_of(statement, index)
    return constraint is not None and constraint.kind == "x"


def recipe_of(index: Index, constraint: Constraint | None = None) -> dict[str, Any]:
    """Return the values of a recipe that builds the index, and makes the constraint of it."""
    values = {
        "name": index.name,
        "unique": "UNIQUE " * index.unique,
        "body": BEFORE_BODY.sub("", index.definition, count=1),
    }
    if constraint:
        values["index"] = f"{index.name.encode()[:58].decode(errors='ignore')}_idx"
        values["kind"] = "PRIMARY KEY" if constraint.kind == "p" else "UNIQUE"
        values["deferral"] = DEFERRAL.search(constraint.definition)[0]  # type: ignore[index]
    return values


def validated(statement: Statement, table: str) -> Change | None:
    """Return the check or foreign key that this statement made valid."""
    for change in statement.changes:
        new = change.after
        if change.table == table and isinstance(new, Constraint) and new.kind in "cf" and new.valid:
            return None if isinstance(change.before, Constraint) and change.before.valid else change
    return None


def made_not_null(statement: Statement, table: str) -> str:
    for change in statement.changes:
        old, new = change.before, change.after
        both = change.table == table and isinstance(old, Column) and isinstance(new, Column)
        if both and getattr(new, "not_null", False) and not getattr(old, "not_null", False):
            return change.name
    return ""


def adds_required_column(change: Change) -> bool:
    """Whether a new column refuses all rows of the table: then the lock is not the problem."""
    new = change.after
    return change.before is None and isinstance(new, Column) and new.not_null and not new.fills_itself


def cause(statement: Statement, table: str) -> str:
    """Return the most specific rule that a long lock on the table breaks."""
    lock, index, change = blocking(statement, table), new_index(statement, table), validated(statement, table)
    if not lock or table not in {*statement.scans, *statement.rewrites}:
        return ""
    if any(one.verb in HOUSEKEEPING for one in split(statement.sql)):
        return "E110"
    if table in statement.rewrites:
        return "E102"
    if index:
        return "E103" if not index.constraint else "E113" if exclusion(statement, index) else "E104"
    if change:
        return "E106" if change.before else "E105"
    if made_not_null(statement, table):
        return "E107"
    if any(adds_required_column(change) for change in statement.changes if change.table == table):
        return "E203"
    is_from_before = table not in statement.taken or not statement.taken[table].blocks
    return "E108" if is_from_before and lock.mode == STRONGEST else "E101"


@rule("E101", "E102", "E103", "E104", "E105", "E106", "E107", "E110", "E113")
def long_lock(trace: Trace, id: str) -> Iterator[Spot]:
    for passed, statement in statements(trace):
        for table in dict.fromkeys([*statement.scans, *statement.rewrites]):
            if cause(statement, table) == id:
                values: dict[str, Any] = {}
                if index := new_index(statement, table):
                    values = recipe_of(index, constraint_of(statement, index))
                if (change := validated(statement, table)) and isinstance(change.after, Constraint):
                    values = {"name": change.name, "definition": change.after.definition}
                if column := made_not_null(statement, table):
                    values = {"column": column, "name": f"{table}_{column}_not_null"}
                yield Spot(passed, None, statement, table, blocking(statement, table), values)
