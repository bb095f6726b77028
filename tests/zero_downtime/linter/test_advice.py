"""Can what a rule advises be run as it stands, whatever the tables, columns, indexes and models are called?"""

import re
from ast import literal_eval

import pytest
from django.core.checks import WARNING
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.linter import judge
from gotong_royong.zero_downtime.linter.names import RESERVED, quoted
from tests.zero_downtime.linter.history import SHOP, migration, trace

NAMES = ["plain", "order", "Note", "dotted.name", "it's", "back\\slash", "{brace}", "two words"]
# Django itself writes no name with a percent sign or a quote in it.
SQL_NAMES = [*NAMES, "100%", "%s", 'quo"te', '"', "ünï", "$1", "select"]
FIELD = "field=models.IntegerField(null=True),"
TABLE = """
operations = [
    migrations.CreateModel("User", [
        ("id", models.{key}(primary_key=True)),
        ("field", models.IntegerField(null=True, db_column={name!r})),
        ("other", models.IntegerField(default=0)),
    ], options={{"db_table": {name!r}}}),
]
"""
# What breaks the rule on a model of such names.
MODELS = {
    "E103": 'migrations.AddIndex("user", models.Index(fields=["field"], name=NAME))',
    "E104": 'migrations.AddConstraint("user", models.UniqueConstraint(fields=["field"], name=NAME))',
    "E105": 'migrations.AddConstraint("user", models.CheckConstraint(condition=models.Q(field__gte=0), name=NAME))',
    "E107": 'migrations.AlterField("user", "field", models.IntegerField(db_column=COLUMN))',
    "E204": 'migrations.AlterField("user", "field", models.SmallIntegerField(null=True, db_column=COLUMN))',
    "E203": 'migrations.AddField("user", "more", models.IntegerField(default=0, db_column=NAME))',
    "E202": 'migrations.RemoveField("user", "field")',
    "E201": 'migrations.DeleteModel("user")',
    "E111": "migrations.RunSQL('UPDATE TABLE SET other = 2', \"\")",
    "W403": 'migrations.AddField("user", "u", models.ForeignKey("customer", models.CASCADE, db_index=False))',
    "W404": 'migrations.AddField("user", "more", models.IntegerField(null=True))',
}
# What breaks it on a table that no model names.
PLAIN_SQL = {
    "E103": "CREATE INDEX {N} ON {T} ({C})",
    "E104": "ALTER TABLE {T} ADD CONSTRAINT {N} UNIQUE ({C})",
    "E105": "ALTER TABLE {T} ADD CONSTRAINT {N} CHECK ({C} > 0)",
    "E107": "ALTER TABLE {T} ALTER COLUMN {C} SET NOT NULL",
    "W411": "DROP INDEX {G}",
}


def operations(one):
    return f"operations = [\n    {one},\n]\n"


def hint(database, id, *sources):
    (hint,) = {one.hint for one in judge(trace(database, *sources)[-1]) if one.rule.id == id}
    return hint


def run(database, advice, *sources):
    """Run the body of a migration that an advice is, forth and back; ``sources`` are the migrations before it."""
    state = build(database, SHOP, *sources)
    advice = pasted(advice).replace("field=...,", FIELD)
    advice = advice.replace("Q(...)", "Q(other=2)", 1).replace("Q(...)", "Q(other=3)")
    advice = advice.replace("dict(...)", "dict(other=3)", 1).replace("dict(...)", "dict(other=2)")
    advised = migration(advice, "20260401000000_advised")
    before = state.clone()
    with database.schema_editor(atomic=advised.atomic) as editor:
        advised.apply(state, editor)
    with database.schema_editor(atomic=advised.atomic) as editor:
        advised.unapply(before, editor)


def pasted(advice, operation=""):
    """Return the advice with the operation in the gap that it leaves for that."""
    return re.sub(r"state_operations=\[\.\.\.\],.*", lambda _: f"state_operations=[{operation}],", advice)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("id", MODELS)
def test_of_a_model(tried, id, name):
    named = "name 2" if id == "W403" else f"{name} 2"
    source = operations(
        MODELS[id]
        .replace("COLUMN", repr(name))
        .replace("NAME", repr(named))
        .replace("TABLE", quoted(name).replace("\\", "\\\\").replace("'", "\\'"))
    )
    table = TABLE.format(key="AutoField" if id == "W404" else "BigAutoField", name=name)
    if id == "W404":
        source = table.replace("User", "Other").replace(repr(name) + "}", repr(named) + "}")
    advice = hint(tried, id, table, source)
    if id in {"E103", "E104", "E105", "E107", "E203", "E111"}:
        run(tried, advice, table)
    elif id in {"E204", "W403"}:
        build(tried, SHOP, table, *([source] if id == "W403" else []))
        with tried.cursor() as cursor:
            cursor.execute(advice.splitlines()[-1].replace("<= …", "<= 5").replace("length(", "abs("))
    else:
        known = {"E201": 'db_table = "(.*)"\\.', "E202": 'db_column="(.*)"\\.', "W404": r'\("(.*)", models'}[id]
        (found,) = re.findall(known, advice)
        assert literal_eval(f'"{found}"') == ("id" if id == "W404" else name)


def build(database, *sources):
    with database.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    state = ProjectState()
    for source in sources:
        with database.schema_editor() as editor:
            state = migration(source, "built").apply(state, editor)
    return state


@pytest.mark.parametrize("name", SQL_NAMES)
@pytest.mark.parametrize("id", PLAIN_SQL)
def test_of_a_table(tried, id, name):
    words = {"{T}": quoted(name), "{C}": quoted(f"{name} c"), "{N}": quoted(f"{name} n"), "{G}": quoted(f"{name} g")}

    def sql(text):
        text = re.sub(r"\{[TCNG]\}", lambda found: words[found[0]], text)
        return operations(f'migrations.RunSQL({text!r}, "")')

    table = sql("CREATE TABLE {T} ({C} int); CREATE INDEX {G} ON {T} ({C})")
    advice = hint(tried, id, table, sql(PLAIN_SQL[id]))
    run(tried, advice, table)


def test_all_words_that_are_reserved_are_known(tried):
    with tried.cursor() as cursor:
        cursor.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
        assert {word for (word,) in cursor.fetchall()} <= RESERVED


LONG = "n" * 63
# What is made or dropped that has more to it than a name and columns, and the rule that it breaks, on which way.
INDEX = 'migrations.AddIndex("user", models.Index({}, name="made"))'
UNIQUE = 'migrations.AddConstraint("user", models.UniqueConstraint({}))'
SQL = 'migrations.RunSQL("{}", "DROP INDEX made")'
VARIANTS = {
    "partial": ("E103", INDEX.format('fields=["field"], condition=models.Q(field__gt=0)')),
    "covering": ("E103", INDEX.format('fields=["field"], include=["other"]')),
    "descending": ("E103", INDEX.format('fields=["-field", "other"]')),
    "an expression": ("E103", INDEX.format('models.F("field") + models.F("other")')),
    "operators": ("E103", SQL.format("CREATE INDEX made ON user_table ((field::text) text_pattern_ops)")),
    "gin": ("E103", SQL.format("CREATE INDEX made ON user_table USING gin ((ARRAY[field]))")),
    "brin with an option": (
        "E103",
        SQL.format("CREATE INDEX made ON user_table USING brin (field) WITH (pages_per_range = 8)"),
    ),
    "quotes and percents": (
        "E103",
        SQL.format("CREATE INDEX made ON user_table (field) WHERE field::text LIKE 'it''s 100%'"),
    ),
    "unique and partial": ("E103", UNIQUE.format('fields=["field"], name="made", condition=models.Q(field__gt=0)')),
    "unique by an expression": ("E103", UNIQUE.format('models.F("field") + models.F("other"), name="made"')),
    "a constraint": ("E104", UNIQUE.format('fields=["field"], name="made"')),
    "a constraint of two columns": ("E104", UNIQUE.format('fields=["field", "other"], name="made"')),
    "deferrable": ("E104", UNIQUE.format('fields=["field"], name="made", deferrable=models.Deferrable.DEFERRED')),
    "deferrable at once": (
        "E104",
        UNIQUE.format('fields=["field"], name="made", deferrable=models.Deferrable.IMMEDIATE'),
    ),
    "a name of 63 letters": ("E104", UNIQUE.format(f'fields=["field"], name="{LONG}"')),
    "a unique field": ("E104", 'migrations.AlterField("user", "field", models.IntegerField(null=True, unique=True))'),
}
PLAIN_TABLE = TABLE.format(key="BigAutoField", name="user_table").replace(", db_column='user_table'", "")
POST_DEPLOY = "stage = Stage.POST_DEPLOY\n"
ROWS = "INSERT INTO user_table (id, field, other) SELECT i, i, i FROM generate_series(1, 9) AS i"
SHAPE = """
    SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'user_table'::regclass AND indisvalid
    UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = 'user_table'::regclass ORDER BY 1
"""


def shape(database, *sources, back=False):
    """Return the indexes and constraints that a table with rows has after these migrations, or without the last."""
    state = build(database, SHOP, PLAIN_TABLE)
    with database.cursor() as cursor:
        cursor.execute(ROWS)
    for source in sources:
        last, before = migration(source, "20260401000000_made"), state.clone()
        with database.schema_editor(atomic=last.atomic) as editor:
            state = last.apply(state, editor)
    if back:
        with database.schema_editor(atomic=last.atomic) as editor:
            last.unapply(before, editor)
    with database.cursor() as cursor:
        cursor.execute(SHAPE)
        return cursor.fetchall()


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_makes_just_what_the_operation_makes(tried, variant):
    id, operation = VARIANTS[variant]
    source = POST_DEPLOY + operations(operation)
    (told,) = [one for one in judge(trace(tried, PLAIN_TABLE, source)[-1]) if one.rule.id == id]
    inner = "" if "RunSQL" in operation else operation
    advised = POST_DEPLOY + pasted(told.hint, inner)
    assert [one.message for one in judge(trace(tried, PLAIN_TABLE, advised)[-1])] == []
    assert shape(tried, advised) == shape(tried, source)
    assert shape(tried, advised, back=True) == shape(tried)


CONCURRENTLY = f"""
atomic = False
operations = [
    migrations.RunSQL(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS made ON user_table (field) WHERE field > 0",
        "DROP INDEX made",
        state_operations=[{VARIANTS["partial"][1]}],
    ),
]
"""
REMOVED = 'migrations.RemoveIndex("user", "made")'
ON_THE_WAY_DOWN = {
    "E103": ([operations(VARIANTS["partial"][1])], operations(REMOVED), REMOVED),
    "W411": ([], CONCURRENTLY, VARIANTS["partial"][1]),
}


@pytest.mark.parametrize("id", ON_THE_WAY_DOWN)
def test_on_the_way_down_it_is_a_warning_whose_recipe_goes_the_other_way(tried, id):
    before, source, operation = ON_THE_WAY_DOWN[id]
    found = judge(trace(tried, PLAIN_TABLE, *before, source)[-1])
    (told,) = [one for one in found if (one.rule.id, one.direction) == (id, "down")]
    assert told.level == WARNING
    advised = pasted(told.hint, operation)
    assert [one.message for one in judge(trace(tried, PLAIN_TABLE, *before, advised)[-1])] == []
    assert shape(tried, *before, advised) == shape(tried, *before, source)
    assert shape(tried, *before, advised, back=True) == shape(tried, *before)
