"""Can what a rule advises be run as it stands, whatever the tables, columns, indexes and models are called?"""

import re
from ast import literal_eval

import pytest
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.linter import judge
from gotong_royong.zero_downtime.linter.names import RESERVED, escaped, quoted
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
    "E104": "CREATE UNIQUE INDEX {N} ON {T} ({C})",
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
    advice = advice.split("\nAn exclusion")[0]
    advice = re.sub(r"state_operations=\[\.\.\.\],.*", "state_operations=[],", advice).replace("field=...,", FIELD)
    advised = migration(advice.replace("update(...)", "update(other=3)"), "20260401000000_advised")
    before = state.clone()
    with database.schema_editor(atomic=advised.atomic) as editor:
        advised.apply(state, editor)
    with database.schema_editor(atomic=advised.atomic) as editor:
        advised.unapply(before, editor)


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
    run(tried, advice.replace(" …", escaped(f" ON {words['{T}']} ({words['{C}']})")), table)


def test_all_words_that_are_reserved_are_known(tried):
    with tried.cursor() as cursor:
        cursor.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
        assert {word for (word,) in cursor.fetchall()} <= RESERVED
