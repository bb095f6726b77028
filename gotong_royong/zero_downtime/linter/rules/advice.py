"""W4xx: what does no harm today? First what concerns the migration as a file, and what it takes for granted."""

import re
import time
from collections.abc import Iterator

from ...backfills.declarations import declared
from ...operations import RunBackfill
from ...postgres.changes import columns_set
from ...postgres.statements import split
from ..facts import Index, Pass, Statement, Trace
from ..registry import Spot, rule
from .examples import DROP_CREATED, NEXT, NOT_ATOMIC, operations
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


@rule(
    "W401",
    "The migration could not be judged",
    condition="It needs what the scratch database has not, also IF EXISTS, was stopped, depends on a migration that "
    "did not run to its end there, or changes rows in a line that did not run on made-up rows, "
    "or by a statement that found none to change.",
    effect="Not all is known about this migration: {why}",
    instead="""
If another migration is named, see to that one first. If a line or statement is named, try it on rows that
it wants, or make it a RunBackfill, which commits batch by batch. Otherwise give the scratch server what is missing
(ZERO_DOWNTIME_SCRATCH_DATABASE names another one), or make the migration do its work without that.
""",
    bad=operations('migrations.RunSQL("CREATE EXTENSION no_such_extension", migrations.RunSQL.noop)'),
    good=operations('migrations.RunSQL("CREATE EXTENSION IF NOT EXISTS plpgsql", migrations.RunSQL.noop)'),
)
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
    """Yield the statements that looked by an index for rows to change, and found none, though there were some.

    What names the keys of its rows changes no more than these.
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


@rule(
    "W402",
    "A waiver is not used",
    condition="IgnoreRules names a rule that this migration does not break, or that does not exist.",
    effect="IgnoreRules waives {waived}, {why}",
    instead="""
Remove the waiver, lest it hide something later, or name the rule that is meant.
""",
    bad=operations(
        'IgnoreRules("E101", reason="It is a small table.")',
        'migrations.AddField("order", "paid", models.BooleanField(null=True))',
    ),
    good=operations(
        'IgnoreRules("E202", reason="Nobody has ever read the note, and the old code is gone.")',
        'migrations.RemoveField("order", "note")',
    ),
)
def unused_waiver(trace: Trace) -> Iterator[Spot]:
    """Yield nothing: only who applies the waivers knows."""
    yield from ()


@rule(
    "W409",
    "The file's name does not say when",
    condition="A migration of the project itself is not called YYYYMMDDHHmmss_description.",
    effect="{migration} sorts anywhere, and two branches may both have made it.",
    instead="""
git mv the file to the time of now (UTC) and a description, and change who depends on it; makemigrations names the next
one so.
""",
)
def name_without_time(trace: Trace) -> Iterator[Spot]:
    if trace.own and not _has_time(trace.migration.name):
        yield Spot(None)


def _has_time(name: str) -> bool:
    try:
        time.strptime(name[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return False
    return NAME.fullmatch(name) is not None


@rule(
    "W410",
    "The file's name is not later than that of what it depends on",
    condition="A migration of the project depends on one whose time is later.",
    effect="{migration} runs after {other}, whose name says that it is later: a rollback to a time takes back the "
    "wrong ones.",
    instead="""
Rename it to a later time, and change who depends on it.
""",
)
def name_too_early(trace: Trace) -> Iterator[Spot]:
    name = trace.migration.name
    if trace.own and _has_time(name):
        for _, other in trace.migration.dependencies:
            if _has_time(other) and other >= name:
                yield Spot(None, values={"other": other})


@rule(
    "W411",
    "An index is dropped under a strong lock",
    condition="DROP INDEX without CONCURRENTLY on a table of before.",
    effect="ACCESS EXCLUSIVE on {table} blocks reads and writes for a moment, and behind it whoever comes while it is "
    "waited for: {statement}",
    instead="""
atomic = False

operations = [
    migrations.RunSQL(
        {forth}="DROP INDEX CONCURRENTLY IF EXISTS {name:sql_text}",
        {back}="CREATE {unique}INDEX CONCURRENTLY IF NOT EXISTS {name:sql_text} ON {table:sql_text} {body:text}",
        state_operations=[...],  # what {drops} it now
    ),
]
""",
    bad=operations('migrations.RemoveIndex("order", "shop_order_created")'),
    good=NOT_ATOMIC + operations(DROP_CREATED),
)
def index_dropped(trace: Trace) -> Iterator[Spot]:
    new = {c.name for s in trace.up.statements for c in s.changes if cause(s, c.table) in {"E103", "E104", "E113"}}
    for passed, statement in statements(trace):
        for change in statement.changes:
            before, lock = change.before, statement.held.get(change.table)
            others = any(c.kind == "column" and c.table == change.table for c in statement.changes)
            if not isinstance(before, Index) or before.constraint or change.after or others or change.name in new:
                continue
            alike = (c.after for c in statement.changes if c.table == change.table and isinstance(c.after, Index))
            if recipe_of(before)["body"] in (recipe_of(index)["body"] for index in alike):  # it has another name now
                continue
            if lock and lock.mode == STRONGEST:
                yield Spot(passed, None, statement, change.table, lock, recipe_of(before))


NEW_INDEX = """\
migrations.RunSQL(
    sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS order_created_number ON shop_order (created, number)",
    reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS order_created_number",
    state_operations=[
        migrations.AddIndex("order", models.Index(fields=["created", "number"], name="order_created_number")),
    ],
)"""


@rule(
    "W417",
    "An index goes before the one that replaces it is there",
    condition="A statement drops an index, and a later one, in another transaction, builds one that begins with the "
    "same column; no other index does.",
    effect="Until {name} is built, which takes longer the more rows {table} has, queries by {column} read the whole "
    "table: {old} is gone already.",
    instead="""
Build {name} first, if need be under another name than {old}, and drop {old} once it is there.
""",
    bad=NOT_ATOMIC + operations(DROP_CREATED, NEW_INDEX),
    good=NOT_ATOMIC + operations(NEW_INDEX, DROP_CREATED),
)
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


@rule(
    "W414",
    "A column may become NULL that running code takes for filled",
    condition="A column loses its NOT NULL, and its field has null=False in the running code.",
    effect="Once new code writes NULL into {column} of {table}, the running code reads None where it expects a value.",
    instead="""
Ship the code that can read None first; the code that writes it comes with the next deploy.
""",
    bad=operations('migrations.AlterField("order", "number", models.IntegerField(null=True))'),
    good=operations('migrations.AlterField("order", "number", models.IntegerField(db_default=0))'),
)
def null_allowed(trace: Trace) -> Iterator[Spot]:
    for change, field, old, new in altered(trace):
        if old.not_null and not new.not_null and not field.null:
            yield spot(trace, change, column=change.name)


ADD_CODE = operations('migrations.AddField("order", "code", models.IntegerField(null=True))')
INDEX_CODE = """\
atomic = False

operations = [
    migrations.RunSQL(
        sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS order_code ON shop_order (code)",
        reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS order_code",
        state_operations=[migrations.AddIndex("order", models.Index(fields=["code"], name="order_code"))],
    ),
]
"""
FILL_CODE = """\
atomic = False

def fill(apps, schema_editor):
    orders = apps.get_model("shop", "Order").objects.using(schema_editor.connection.alias).order_by("pk")
    last = 0
    while keys := list(orders.filter(pk__gt=last).values_list("pk", flat=True)[:1000]):
        orders.filter(pk__gte=keys[0], pk__lte=keys[-1], code=None).update(code=0)
        last = keys[-1]

operations = [
    migrations.RunPython(fill, migrations.RunPython.noop),
]
"""


@rule(
    "W416",
    "A column is filled after it was indexed",
    condition="RunBackfill, or an UPDATE of nothing else, fills a column that an earlier migration of the plan added "
    "and has indexed.",
    effect="{column} of {table} has index {name} already, from {other}: each row that is filled gets a new place and "
    "an entry in every index of the table, where without {name} it could be changed in its place.",
    instead="""
Add the column, fill it, and then build the index. Give the file that builds {name} a later time, and let it depend on
this migration and not the other way round:

class Migration(migrations.Migration):
    dependencies = [("{app}", "{migration}")]
""",
    bad=NEXT.join([ADD_CODE, INDEX_CODE, FILL_CODE]),
    good=NEXT.join([ADD_CODE, FILL_CODE, INDEX_CODE]),
)
def filled_after_its_index(trace: Trace) -> Iterator[Spot]:
    filled: dict[tuple[str, str], Statement | None] = dict.fromkeys(backfilled(trace))
    for one in trace.up.statements:
        places = dict.fromkeys(set_by(one), one)
        if places.keys() <= trace.indexed.keys():  # save() sets all columns, also those filled long ago
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
