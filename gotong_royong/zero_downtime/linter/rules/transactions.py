"""E1xx, continued: what stands together in one transaction, so that a lock that could be brief is not?"""

from collections.abc import Iterator
from itertools import groupby, product

from django.db.migrations import RunPython

from ...operations import RunBackfill
from ..facts import Direction, Lock, Pass, Statement, Trace
from ..registry import Spot, rule
from ..rows import HALF
from .examples import ADD_PAID, NOT_ATOMIC, TWO_TABLES, operations
from .locks import STRONGEST, cause, long_lock, statements

MOVED_TO_ITS_OWN = """
Put it into a migration of its own, which depends on this one, so that {lock} on {table} is let go before.
"""


@rule(
    "E108",
    "Rows are read or written while a strong lock from before is held",
    condition="A transaction that has ACCESS EXCLUSIVE on a table of before goes on to scan or to write tables.",
    effect="This transaction has {lock} on {table} since an earlier statement, and that blocks {blocks} until it ends, "
    "also while this one runs: {statement}",
    instead=MOVED_TO_ITS_OWN,
    bad=operations(
        'migrations.AddField("order", "paid", models.BooleanField(null=True))',
        'migrations.RunSQL("SELECT count(*) FROM shop_customer", migrations.RunSQL.noop)',
    ),
    good=ADD_PAID,
)
def works_under_lock(trace: Trace) -> Iterator[Spot]:
    for passed, sent in transactions(trace):
        for statement in sent:
            touched = {*statement.scans, *statement.rewrites, *statement.writes}
            before = [lock for lock in statement.holds if lock.mode == STRONGEST and lock not in statement.takes]
            if before and any(cause(statement, table) in {"", "E108"} for table in touched):
                yield Spot(passed, None, statement, before[0].table, before[0])
                break


@rule(
    "E109",
    "Several tables are locked strongly in one transaction",
    condition="Different statements of one transaction take ACCESS EXCLUSIVE on different tables of before.",
    effect="This transaction has ACCESS EXCLUSIVE on {others} already and takes it on {later}, too: the first blocks "
    "reads and writes while it waits for the next, and code that uses both in another order makes a deadlock.",
    instead="""
Make a migration for each table, or write atomic = False if each statement may stand alone:

class Migration(migrations.Migration):
    atomic = False
""",
    bad=TWO_TABLES,
    good=NOT_ATOMIC + TWO_TABLES,
)
def several_tables(trace: Trace) -> Iterator[Spot]:
    for passed, sent in transactions(trace):
        known: list[str] = []
        later: list[tuple[Statement, Lock]] = []
        for statement in sent:
            taken = [lock for lock in statement.takes if lock.mode == STRONGEST and lock.table not in known]
            if passed.direction == Direction.DOWN:  # where a table goes, so do its foreign keys: nobody can part them
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


long_lock(
    "E110",
    "A table is emptied or packed while others wait",
    condition="VACUUM FULL, CLUSTER, TRUNCATE, REINDEX or REFRESH MATERIALIZED VIEW, not CONCURRENTLY.",
    effect="{lock} on {table} blocks {blocks} while the table or its indexes are written anew: {statement}",
    instead="""
Leave out what only tidies up: autovacuum does that, REINDEX has CONCURRENTLY, and so has REFRESH MATERIALIZED VIEW
where the view has a unique index. Delete rows by a backfill (RunBackfill), which commits batch by batch.
""",
    bad=NOT_ATOMIC + operations('migrations.RunSQL("VACUUM FULL shop_order", migrations.RunSQL.noop)'),
    good=NOT_ATOMIC + operations('migrations.RunSQL("VACUUM shop_order", migrations.RunSQL.noop)'),
)


@rule(
    "E111",
    "A whole table is changed in one transaction",
    condition="A statement changes rows that it finds by reading a whole table of before, or a transaction changes "
    "more rows the more there are: half of those that it was tried on, or all.",
    effect="The transaction takes longer the more rows there are. Until it ends, whoever writes one of the rows of "
    "{table} that it wrote, or inserts the same key, waits, and no vacuum clears away what anybody leaves behind, so "
    "that tables grow: {statement}",
    instead="""
# In backfills.py of {app}; from {engine}.backfills import BackfillDeclaration
class FillRows(BackfillDeclaration):
    model = "{label:text}"
    where = Q(...)  # the rows still to do: what is done to a row must make this false
    update = dict(...)  # or, for a DELETE or Python: def process(self, batch): batch.delete()
    reverse = "{app}.unfill_rows"  # what RunBackfill runs on the way down

class UnfillRows(BackfillDeclaration):
    model = "{label:text}"
    where = Q(...)
    update = dict(...)

# In a migration of its own; from {engine}.operations import RunBackfill
atomic = False

operations = [RunBackfill("{app}.fill_rows")]
""",
    bad="""
operations = [
    migrations.RunSQL("UPDATE shop_order SET note = '' WHERE note IS NULL", migrations.RunSQL.noop),
]
""",
    good="""
class FillNotes(BackfillDeclaration):
    model = "shop.Order"
    where = Q(note=None)
    update = {"note": ""}
    reverse = "shop.unfill_notes"

class UnfillNotes(BackfillDeclaration):
    model = "shop.Order"
    where = Q(note="")
    update = {"note": None}

atomic = False

operations = [
    RunBackfill("shop.fill_notes"),
]
""",
)
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
    """Whether that operation, which is done all at once here, commits batch by batch where there are many rows."""
    return isinstance(trace.migration.operations[number], RunBackfill)


def row_by_row(trace: Trace) -> Iterator[Spot]:
    """Yield the operations that changed at least half of the rows that were there when they were run once more."""
    for passed, number in product(trace.passes, range(len(trace.migration.operations))):
        if in_batches(trace, number):
            continue
        sent = [one for one in passed.statements if one.operation == number and one.transaction >= 0]
        rehearsed = [one for one in sent if one.rehearsed and one.rows]
        more = sum(one.rows for one in rehearsed) - sum(one.rows for one in sent if not one.rehearsed)
        if more >= HALF:
            table = next((table for one in rehearsed for table in one.writes), "")
            yield Spot(passed, None, rehearsed[0], table, rehearsed[0].held.get(table))


@rule(
    "E112",
    "Schema and data are changed in one migration",
    condition="A migration has RunPython, or raw SQL that writes rows, beside a change of the schema of a table.",
    effect="What the data change takes long for, the schema change holds its locks for; and when one fails, the other "
    "cannot be run, undone or tried again alone.",
    instead="""
Make three migrations: add what is new, change the data (RunBackfill, atomic = False), take away what is old.
""",
    bad="""
def fill(apps, schema_editor):
    apps.get_model("shop", "Order").objects.using(schema_editor.connection.alias).filter(pk=1).update(paid=True)

operations = [
    migrations.AddField("order", "paid", models.BooleanField(null=True)),
    migrations.RunPython(fill, migrations.RunPython.noop),
]
""",
    good=ADD_PAID,
)
def schema_and_data(trace: Trace) -> Iterator[Spot]:
    strong = next((s for s in trace.up.statements if s.changes or any(lock.blocks for lock in s.takes)), None)
    data = [
        number
        for number, operation in trace.operations
        if isinstance(operation, RunPython) and operation.code is not RunPython.noop
    ]
    data += [s.operation for s in trace.up.statements if s.writes and not s.changes]
    if strong and data:
        table = next((lock.table for lock in strong.takes), "")
        yield Spot(trace.up, data[0], None, table)
