"""E2xx: what breaks the code that runs when the migration is applied?

Before a deploy, that is the code of before: what its models name must stay. A migration of ``Stage.POST_DEPLOY`` is
applied when the code of the newest state runs everywhere.
"""

import re
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from django.db import models

from ...stages import Stage, said_stage
from ..differences import unique_in
from ..facts import Change, Column, Constraint, Index, Statement, Table, Trace
from ..names import Name
from ..registry import Spot, rule
from .examples import CHECK_NOT_VALID, DB_DEFAULT, NEXT, NOT_ATOMIC, POST_DEPLOY, UNIQUE_INDEX, operations
from .locks import adds_required_column, recipe_of

AFTER_THE_DEPLOY = """
Take it out of the models first and ship that; then drop it in a migration that runs once no old code is left:

class Migration(migrations.Migration):
    stage = Stage.POST_DEPLOY  # from {engine}.stages import Stage
"""

# https://www.postgresql.org/docs/current/datatype.html: whatever fits into the first fits into the second.
WIDER = {
    "smallint": {"integer", "bigint", "numeric", "text", "character varying"},
    "integer": {"bigint", "numeric", "text", "character varying"},
    "bigint": {"numeric", "text", "character varying"},
    "date": {"timestamp with time zone", "timestamp without time zone", "text", "character varying"},
    "real": {"double precision"},
    "character varying": {"text"},
    "character": {"text", "character varying"},
    "text": {"character varying"},
    "json": {"jsonb", "text"},
    "jsonb": {"json", "text"},
    "uuid": {"text"},
    "timestamp with time zone": {"timestamp without time zone", "text"},
    "timestamp without time zone": {"timestamp with time zone", "text"},
}
TYPE = re.compile(r"(?P<name>[^(]+?)(?:\((?P<sizes>[\d,]+)\))?(?P<rest>[^(]*)")


def fields(model: type[models.Model]) -> dict[str, Any]:
    """Return the fields that have a column, by its name."""
    return {str(field.column): field for field in model._meta.local_concrete_fields}


def known_changes(trace: Trace) -> Iterator[tuple[Change, dict[str, Any]]]:
    """Yield the changes of tables that the running code names, with the fields it has there."""
    for change in trace.up.changes:
        name = change.before.name if isinstance(change.before, Table) else change.table
        if model := trace.running.get(name):
            yield change, fields(model)


def altered(trace: Trace) -> Iterator[tuple[Change, Any, Column, Column]]:
    """Yield each column that changed and that the running code has a field for, as it was before and after."""
    for change, known in known_changes(trace):
        old, new = change.before, change.after
        if isinstance(old, Column) and isinstance(new, Column) and change.name in known:
            yield change, known[change.name], old, new


def statement_of(trace: Trace, change: Change) -> Statement | None:
    """Return the last statement that changed that part of the table, by which name this had then."""
    touching = [
        (one.table == change.table, statement)
        for statement in trace.up.statements
        for one in statement.changes
        if (one.kind, one.name) == (change.kind, change.name) and one.table not in trace.tables.keys() - {change.table}
    ]
    return sorted(touching, key=itemgetter(0))[-1][1] if touching else None


def spot(trace: Trace, change: Change, **values: Any) -> Spot:
    statement = statement_of(trace, change)
    lock = statement.held.get(change.table) if statement else None
    return Spot(trace.up, None, statement, change.table, lock, {"name": change.name, **values})


@rule(
    "E201",
    "A table goes that running code uses",
    condition="A table that a model of the running code names is dropped, renamed without another in its place, or "
    "in no schema of the search path that the database, a role or the session has then.",
    effect="Every query of the running code on {table} fails: it is {what}.",
    instead=AFTER_THE_DEPLOY
    + """
Let the search path keep the schemas of all tables. For statements of one migration, SET LOCAL search_path ends with it.
A table keeps its name when its model is renamed: class Meta: db_table = "{table:text}".
""",
    bad=operations('migrations.RenameModel("Order", "Purchase")'),
    good="""
operations = [
    migrations.SeparateDatabaseAndState(
        state_operations=[
            migrations.RenameModel("Order", "Purchase"),
            migrations.AlterModelTable("purchase", "shop_order"),
        ],
    ),
]
""",
)
def table_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        if isinstance(change.before, Table):
            name, after = change.before.name, change.after
            now = trace.tables.get(name)
            if isinstance(after, Table) and now and known.keys() <= now.columns.keys():
                continue
            what = f"renamed to {after.name}" if isinstance(after, Table) else "dropped"
            if isinstance(after, Table) and after.name.endswith(f".{name}"):
                what = f"now {after.name}, which is not in the search path"
            yield spot(trace, change._replace(table=name), what=what)


@rule(
    "E202",
    "A column goes that running code uses",
    condition="A column that a model of the running code names is dropped or renamed.",
    effect="Django names every column in its SELECT and INSERT, so every query of the running code on {table} fails "
    "once {column} is gone.",
    instead=AFTER_THE_DEPLOY
    + """
A column keeps its name when its field is renamed: the new field gets db_column="{column:text}".
""",
    bad=operations('migrations.RemoveField("order", "note")'),
    good=POST_DEPLOY + operations('migrations.RemoveField("order", "note")'),
)
def column_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        if change.kind == "column" and change.after is None and change.name in known:
            yield spot(trace, change, column=change.name)


@rule(
    "E203",
    "A new column that running code leaves empty may not be empty",
    condition="A column is added NOT NULL to a table of before, and the database has no default for it when the "
    "migration has ended.",
    effect="Nobody who writes into {table} knows {column} yet, the running code included, so every INSERT fails. "
    "(Django drops the default of a field once the column is there.)",
    instead="""
operations = [
    migrations.AddField(
        model_name="{model}",
        name="{field}",
        field=...,  # with db_default=<the default>, which stays in the database, or with null=True
    ),
]
""",
    bad=operations('migrations.AddField("order", "paid", models.BooleanField(default=False))'),
    good=DB_DEFAULT,
)
def required_column(trace: Trace) -> Iterator[Spot]:
    for change in trace.up.changes:
        model = trace.running.get(change.table)
        is_known = model is not None and change.name in fields(model)
        if adds_required_column(change) and not is_known and statement_of(trace, change):
            yield spot(trace, change, column=change.name)


def takes_all(old: str, new: str) -> bool:
    """Whether the type ``new`` takes all values of ``old``."""
    if old == new:
        return True
    before, after = TYPE.fullmatch(old), TYPE.fullmatch(new)
    if not before or not after:
        return False
    kinds = [match["name"].strip() + match["rest"] for match in (before, after)]
    sizes = [[int(size) for size in (match["sizes"] or "").split(",") if size] for match in (before, after)]
    if kinds[0] != kinds[1] and kinds[1] not in WIDER.get(kinds[0], ()):
        return False
    if not sizes[1]:
        return True
    if kinds[0] == kinds[1] == "numeric" and sizes[0]:
        whole = [size[0] - (size[1] if len(size) > 1 else 0) for size in sizes]
        return whole[0] <= whole[1] and sizes[0][1:] <= sizes[1][1:]
    return kinds[0].startswith("character") and bool(sizes[0]) and sizes[0][0] <= sizes[1][0]


@rule(
    "E204",
    "The new type refuses what running code writes",
    condition="A column of a model that runs gets a type that does not take all values of the old one.",
    effect="{column} of {table} becomes {after} and was {before}: writes of the running code may fail, and so does "
    "the migration if one row does not fit.",
    instead="""
Add a new column of the wanted type, let the code write both, fill the new one by RunBackfill, read from it, and drop
{column} in a migration with stage = Stage.POST_DEPLOY. To limit a text, prefer a check that is added NOT VALID:

ALTER TABLE {table:sql} ADD CONSTRAINT {column_length:sql} CHECK (length({column:sql}) <= …) NOT VALID
""",
    bad=operations('migrations.AlterField("customer", "name", models.CharField(max_length=50))'),
    good=operations('migrations.AddField("customer", "short_name", models.CharField(max_length=50, null=True))'),
)
def narrower_type(trace: Trace) -> Iterator[Spot]:
    for change, _, old, new in altered(trace):
        if not takes_all(old.type, new.type):
            yield spot(trace, change, column=change.name, before=old.type, after=new.type)


@rule(
    "E205",
    "A column that running code may leave empty becomes NOT NULL",
    condition="A column becomes NOT NULL, and its field has null=True in the running code.",
    effect="The running code may write NULL into {column} of {table}, which then fails; and while one row has NULL, "
    "the migration itself fails.",
    instead="""
Ship code that always writes {column} (null=False in the model, the column as it is), fill the old rows by RunBackfill,
and then: class Migration(migrations.Migration): stage = Stage.POST_DEPLOY
""",
    bad=operations('migrations.AlterField("order", "note", models.TextField(db_default=""))'),
    good=operations('migrations.AlterField("order", "note", models.TextField(null=True, db_default=""))'),
)
def null_refused(trace: Trace) -> Iterator[Spot]:
    for change, field, old, new in altered(trace):
        if new.not_null and not old.not_null and field.null:
            yield spot(trace, change, column=change.name)


@rule(
    "E206",
    "Running code does not know that values must be unique",
    condition="A unique index appears on columns that the running code knows, but not as unique.",
    effect="The running code may write the same {columns} into {table} twice, which then fails; and while two rows "
    "have the same, the migration itself fails.",
    instead="""
Ship the code that keeps {columns} unique, remove the duplicates by RunBackfill, and then build the index CONCURRENTLY
in a migration with stage = Stage.POST_DEPLOY.
""",
    bad=NOT_ATOMIC + UNIQUE_INDEX,
    good=NOT_ATOMIC + POST_DEPLOY + UNIQUE_INDEX,
)
def unknown_unique(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        index = change.after
        if change.before or not isinstance(index, Index) or not index.unique or not set(index.columns) <= set(known):
            continue
        if frozenset(index.columns) not in unique_in(trace.running[change.table]):
            yield spot(trace, change, columns=Name.several(index.columns))


ITEM = """
operations = [
    migrations.CreateModel("Item", [
        ("id", models.BigAutoField(primary_key=True)),
        ("code", models.IntegerField()),
    ], options={"constraints": [models.UniqueConstraint(fields=["code"], condition=Q(code__gt=0), name="item_code")]}),
]
"""
DROP_UNIQUE = """
operations = [
    migrations.RunSQL(
        sql="DROP INDEX CONCURRENTLY IF EXISTS item_code",
        reverse_sql="CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS item_code ON shop_item (code) WHERE code > 0",
        state_operations=[migrations.RemoveConstraint("item", "item_code")],
    ),
]
"""


@rule(
    "W418",
    "A unique index goes that running code may rely on",
    condition="A unique constraint or index of a table that the running code names is dropped, and no other is like "
    "it; of a migration that runs after the deploy, one that the models of then still name.",
    effect="{name} of {table} goes: where the running code inserts with ON CONFLICT ({columns}), as "
    "bulk_create(update_conflicts=True) does, each such INSERT fails; where it says get_or_create or "
    "update_or_create, it makes duplicates when two requests meet.",
    instead="""
Ship the code that does without {name} first, and drop it in a migration that runs once no old code is left:

class Migration(migrations.Migration):
    stage = Stage.POST_DEPLOY  # from {engine}.stages import Stage

Where another unique index takes its place, build that one first. If no code relies on it, say so:

IgnoreRules("W418", reason="Nothing inserts with ON CONFLICT or get_or_create here.")
""",
    bad=NEXT.join([ITEM, NOT_ATOMIC + DROP_UNIQUE]),
    good=NEXT.join([ITEM, NOT_ATOMIC + POST_DEPLOY + DROP_UNIQUE]),
)
def unique_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        old, table = change.before, trace.tables.get(change.table)
        if not isinstance(old, Index) or not old.unique or change.after or not table:
            continue
        is_like = (recipe_of(one)["body"] == recipe_of(old)["body"] for one in table.indexes.values() if one.unique)
        model = trace.running[change.table]
        is_named = old.name in {one.name for one in model._meta.constraints}
        is_named |= not old.partial and frozenset(old.columns) in unique_in(model)
        is_left_to_old_code = said_stage(trace.migration) != Stage.POST_DEPLOY
        columns = {column for column in old.columns if column}
        if columns <= known.keys() & table.columns.keys() and (is_named or is_left_to_old_code) and not any(is_like):
            yield spot(trace, change, columns=Name.several(old.columns))


@rule(
    "E207",
    "A label of an enum goes that running code writes",
    condition="A label of an enum type that was there before is renamed, or its type dropped.",
    effect="The running code writes and compares with '{label}' of {type}, and each such query fails.",
    instead="""
Add the new label (ALTER TYPE {type:sql} ADD VALUE IF NOT EXISTS '…'), let the code write it, change the rows by
RunBackfill, and leave '{label}' where it is: an unused label costs nothing.
""",
    bad="""
operations = [
    migrations.RunSQL(
        "ALTER TYPE shop_state RENAME VALUE 'open' TO 'new'",
        "ALTER TYPE shop_state RENAME VALUE 'new' TO 'open'",
    ),
]
""",
    good="""
operations = [
    migrations.RunSQL("ALTER TYPE shop_state ADD VALUE IF NOT EXISTS 'new'", migrations.RunSQL.noop),
]
""",
)
def label_gone(trace: Trace) -> Iterator[Spot]:
    for type_, label in trace.up.enums:
        statement = next((s for s in trace.up.statements if type_ in s.sql), None)
        yield Spot(trace.up, None, statement, "", None, {"type": type_, "label": label})


DROP_DEFAULT = operations('migrations.AlterField("order", "paid", models.BooleanField(default=False))')


@rule(
    "E208",
    "A default goes that running code relies on",
    condition="A column loses its default or identity in the database, and the running code does not write it itself: "
    "its field has db_default, or it has no field and is NOT NULL.",
    effect="The running code leaves {column} of {table} to the database, which no longer knows what to write: its "
    "INSERTs fail, or leave it NULL.",
    instead="""
Ship the code that writes {column} itself (default=… in the model, and the column as it is), and drop the default in a
migration with stage = Stage.POST_DEPLOY.
""",
    bad=NEXT.join([DB_DEFAULT, DROP_DEFAULT]),
    good=NEXT.join([DB_DEFAULT, POST_DEPLOY + DROP_DEFAULT]),
)
def default_gone(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        old, new = change.before, change.after
        if isinstance(old, Column) and isinstance(new, Column) and old.fills_itself and not new.fills_itself:
            field = known.get(change.name)
            if field.db_returning if field else new.not_null:
                yield spot(trace, change, column=change.name)


@rule(
    "W415",
    "Running code does not know a constraint",
    condition="A check, foreign key or exclusion constraint appears on columns that the running code knows, without "
    "choices or a ForeignKey that keep to it.",
    effect="What the running code writes into {columns} of {table} may violate {name} {definition}, and then fails; "
    "and so may old rows.",
    instead="""
Ship the code that keeps to {name} first, and add the constraint (NOT VALID, then VALIDATE) in a migration with
stage = Stage.POST_DEPLOY. If the code has always kept to it, say so:

IgnoreRules("W415", reason="The form refuses anything else since 2025.")
""",
    bad=NOT_ATOMIC + CHECK_NOT_VALID,
    good=NOT_ATOMIC + POST_DEPLOY + CHECK_NOT_VALID,
)
def unknown_constraint(trace: Trace) -> Iterator[Spot]:
    for change, known in known_changes(trace):
        new = change.after
        if change.before is None and isinstance(new, Constraint) and new.kind in "cfx" and new.columns:
            meta = trace.running[change.table]._meta
            has = {constraint.name for constraint in meta.constraints}
            keys = {column for column, field in known.items() if field.remote_field}
            chosen = {column for column, field in known.items() if field.choices}
            keeps_to_it = {"f": keys, "c": chosen, "x": set()}[new.kind]
            if not set(new.columns) <= set(known) or new.name in has or set(new.columns) <= keeps_to_it:
                continue
            yield spot(trace, change, columns=Name.several(new.columns), definition=new.definition)
