"""E1xx: whom does a statement keep waiting, and does that last longer the more rows there are?

A lock that is held for a moment is no violation: ``migrate`` takes it under its budget. What makes an outage is a lock
that holds somebody up while the server reads or writes a whole table
(https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from ...postgres.statements import split
from ..facts import Change, Column, Constraint, Index, Lock, Pass, Statement, Trace
from ..registry import Spot, rule
from .examples import EXCLUSION, NOT_ATOMIC, NOT_VALID_AND_VALIDATE, POST_DEPLOY, UNIQUE_CONSTRAINT, operations

HOUSEKEEPING = {"VACUUM", "CLUSTER", "TRUNCATE", "REINDEX", "REFRESH"}
STRONGEST = "AccessExclusiveLock"
BEFORE_BODY = re.compile(r".*? USING btree |.*?(?=USING )", re.DOTALL)
DEFERRAL = re.compile(r"(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?$")


def statements(trace: Trace) -> Iterator[tuple[Pass, Statement]]:
    for passed in trace.passes:
        for statement in passed.statements:
            yield passed, statement


def blocking(statement: Statement, table: str) -> Lock | None:
    """Return the lock on the table that keeps somebody waiting while the statement runs."""
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
    """Return what is needed to write the statement that builds the index, and that makes the constraint of it."""
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
    """Whether a new column refuses all rows that are there: then it is no lock that is the trouble."""
    new = change.after
    return change.before is None and isinstance(new, Column) and new.not_null and not new.fills_itself


def cause(statement: Statement, table: str) -> str:
    """Say which rule a long lock on the table breaks: the most specific one."""
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


def long_locks(trace: Trace, id: str) -> Iterator[Spot]:
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


def long_lock(id: str, title: str, **texts: str) -> None:
    """Register the rule that ``cause`` calls so."""
    rule(id, title, **texts)(partial(long_locks, id=id))


long_lock(
    "E101",
    "A table is read from end to end while others wait",
    condition="A statement scans a table of before under a lock that blocks reads or writes.",
    effect="{lock} on {table} blocks {blocks} while the whole table is read, longer the more rows it has: {statement}",
    instead="""
Read {table} without {lock}: in a statement of its own that takes a weaker lock, in a migration with atomic = False.
Where the rows must not change meanwhile, keep a copy up to date by a trigger and fill it by RunBackfill.
""",
    bad="""
operations = [
    migrations.RunSQL(
        "LOCK TABLE shop_order IN SHARE MODE; CREATE TABLE order_numbers AS SELECT number FROM shop_order",
        "DROP TABLE order_numbers",
    ),
]
""",
    good="""
operations = [
    migrations.RunSQL(
        "CREATE TABLE order_numbers AS SELECT number FROM shop_order",
        "DROP TABLE order_numbers",
    ),
]
""",
)


long_lock(
    "E102",
    "A table is written anew while others wait",
    condition="A statement rewrites a table of before: its file node changes.",
    effect="{lock} on {table} blocks {blocks} while every row and every index is written anew: {statement}",
    instead="""
Add a new column of the wanted type, keep it up to date by a trigger, fill it by RunBackfill,
let the code use it, and drop the old one in a later migration with stage = Stage.POST_DEPLOY. For a new column, use a
constant or a stable default (db_default=Now() is one), or add it without a default and fill it by RunBackfill.
""",
    back="""
The way down turns the column back, which writes the table anew. Take it back only while the table is small; otherwise
leave the column as it is, and bring what is wanted in a new migration.
""",
    bad=operations('migrations.AlterField("order", "number", models.BigIntegerField())'),
    good=operations('migrations.AddField("order", "big_number", models.BigIntegerField(null=True))'),
)


long_lock(
    "E103",
    "An index is built while writes wait",
    condition="CREATE INDEX or CREATE UNIQUE INDEX without CONCURRENTLY on a table of before.",
    effect="{lock} on {table} blocks {blocks} while index {name} is built from all rows: {statement}",
    instead="""
atomic = False

operations = [
    migrations.RunSQL(
        {forth}="CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS {name:sql_text} ON {table:sql_text} {body:text}",
        {back}="DROP INDEX CONCURRENTLY IF EXISTS {name:sql_text}",
        state_operations=[...],  # what {makes} it now; a foreign key: AddField with db_index=False before that
    ),
]
""",
    bad=operations('migrations.AddIndex("order", models.Index(fields=["number"], name="order_number"))'),
    good="""
atomic = False

operations = [
    migrations.RunSQL(
        sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS order_number ON shop_order (number)",
        reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS order_number",
        state_operations=[
            migrations.AddIndex("order", models.Index(fields=["number"], name="order_number")),
        ],
    ),
]
""",
)


long_lock(
    "E104",
    "A unique constraint or a primary key is built while others wait",
    condition="A statement builds the unique index of a constraint on a table of before, not CONCURRENTLY.",
    effect="{lock} on {table} blocks {blocks} while the unique index {name} is built from all rows: {statement}",
    instead="""
atomic = False

operations = [
    migrations.RunSQL(
        {forth}=[
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS {index:sql_text} ON {table:sql_text} {body:text}",
            "ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}, "  # a moment's lock
            "ADD CONSTRAINT {name:sql_text} {kind} USING INDEX {index:sql_text}{deferral}",  # which renames the index
        ],
        {back}="ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}",
        state_operations=[...],  # what {makes} it now
    ),
]
""",
    bad=POST_DEPLOY
    + operations('migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], name="order_number"))'),
    good=NOT_ATOMIC + POST_DEPLOY + UNIQUE_CONSTRAINT,
)


long_lock(
    "E113",
    "An exclusion constraint is built while others wait",
    condition="A statement adds an exclusion constraint to a table of before.",
    effect="{lock} on {table} blocks {blocks} while the index of {name} is built from all rows: {statement}",
    instead="""
PostgreSQL builds no exclusion constraint CONCURRENTLY. While the table is small, say so:

IgnoreRules("E113", reason="It has a thousand rows.")

Else make a new table with the constraint, keep it up to date by a trigger, and move the rows there by RunBackfill.
""",
    bad=POST_DEPLOY + operations(EXCLUSION),
    good=POST_DEPLOY
    + operations('IgnoreRules("E113", "W415", reason="It has a thousand rows, and the form keeps to it.")', EXCLUSION),
)


long_lock(
    "E105",
    "A constraint is validated while others wait",
    condition="A check or foreign key is added to a table of before without NOT VALID.",
    effect="{lock} on {table} blocks {blocks} while all rows are compared with {name} {definition}: {statement}",
    instead="""
atomic = False

operations = [
    migrations.RunSQL(
        {forth}=[
            "ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}, "
            "ADD CONSTRAINT {name:sql_text} {definition:text} NOT VALID",
            "ALTER TABLE {table:sql_text} VALIDATE CONSTRAINT {name:sql_text}",
        ],
        {back}="ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}",
        state_operations=[...],  # what {makes} it now; a foreign key: AddField with db_constraint=False before that
    ),
]
""",
    bad="""
stage = Stage.POST_DEPLOY

operations = [
    migrations.AddConstraint(
        "order", models.CheckConstraint(condition=models.Q(number__gt=0), name="number_is_positive")
    ),
]
""",
    good="""
atomic = False
stage = Stage.POST_DEPLOY

operations = [
    migrations.RunSQL(
        sql=[
            "ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS number_is_positive, "
            "ADD CONSTRAINT number_is_positive CHECK (number > 0) NOT VALID",
            "ALTER TABLE shop_order VALIDATE CONSTRAINT number_is_positive",
        ],
        reverse_sql="ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS number_is_positive",
        state_operations=[
            migrations.AddConstraint(
                "order", models.CheckConstraint(condition=models.Q(number__gt=0), name="number_is_positive")
            ),
        ],
    ),
]
""",
)


long_lock(
    "E106",
    "A constraint is validated in the transaction that added it",
    condition="ADD CONSTRAINT … NOT VALID and VALIDATE CONSTRAINT in one transaction: the first one's lock stays.",
    effect="VALIDATE needs no strong lock, but this transaction still has {lock} on {table}, from adding {name}, and "
    "that blocks {blocks} while all rows are read.",
    instead="""
Write atomic = False in the migration, so that each statement commits on its own:

class Migration(migrations.Migration):
    atomic = False
""",
    bad=POST_DEPLOY + NOT_VALID_AND_VALIDATE,
    good=NOT_ATOMIC + POST_DEPLOY + NOT_VALID_AND_VALIDATE,
)


long_lock(
    "E107",
    "SET NOT NULL reads the whole table while others wait",
    condition="A column of a table of before becomes NOT NULL, and no valid CHECK (… IS NOT NULL) spares the scan.",
    effect="{lock} on {table} blocks {blocks} while all rows are searched for a NULL in {column}: {statement}",
    instead="""
atomic = False

operations = [
    migrations.RunSQL(
        {forth}=[
            "ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}, "
            "ADD CONSTRAINT {name:sql_text} CHECK ({column:sql_text} IS NOT NULL) NOT VALID",
            "ALTER TABLE {table:sql_text} VALIDATE CONSTRAINT {name:sql_text}",
            "ALTER TABLE {table:sql_text} ALTER COLUMN {column:sql_text} SET NOT NULL",  # the CHECK is proof
            "ALTER TABLE {table:sql_text} DROP CONSTRAINT IF EXISTS {name:sql_text}",
        ],
        {back}="ALTER TABLE {table:sql_text} ALTER COLUMN {column:sql_text} DROP NOT NULL",
        state_operations=[...],  # what {makes} it now
    ),
]
""",
    bad=POST_DEPLOY + operations('migrations.AlterField("order", "note", models.TextField())'),
    good="""
atomic = False
stage = Stage.POST_DEPLOY

operations = [
    migrations.RunSQL(
        sql=[
            "ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS shop_order_note_not_null, "
            "ADD CONSTRAINT shop_order_note_not_null CHECK (note IS NOT NULL) NOT VALID",
            "ALTER TABLE shop_order VALIDATE CONSTRAINT shop_order_note_not_null",
            "ALTER TABLE shop_order ALTER COLUMN note SET NOT NULL",
            "ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS shop_order_note_not_null",
        ],
        reverse_sql="ALTER TABLE shop_order ALTER COLUMN note DROP NOT NULL",
        state_operations=[
            migrations.AlterField("order", "note", models.TextField()),
        ],
    ),
]
""",
)
