"""Is whatever a way back may destroy named before it is done, and what it cannot do said before it begins?"""

import pytest

from tests.databases import look
from tests.zero_downtime.running.test_recall import recorded, sql
from tests.zero_downtime.things import NOT_TOLD, TAG, TAGS, TWO, alter, field, now, raw, rows, told, trial

pytestmark = pytest.mark.once

TRIGGER = """
    CREATE FUNCTION empty() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM shop_thing; RETURN NULL; END';
    CREATE TRIGGER empties AFTER UPDATE ON shop_thing EXECUTE FUNCTION empty()
"""

# What is migrated, what happens to the data, and what the way back says.
CASES = {
    "a column": (
        field("note", "TextField(null=True)"),
        "UPDATE shop_thing SET note = 'x'",
        ["loses 2 values of shop_thing.note"],
    ),
    "an empty column": (field("note", "TextField(null=True)"), "", []),
    "a table": (TAG, "INSERT INTO shop_tag DEFAULT VALUES", ["loses 1 row of shop_tag"]),
    "an empty table": (TAG, "", []),
    "many to many": (
        f"{TAG}, {field('tags', TAGS)}",
        "INSERT INTO shop_tag DEFAULT VALUES; INSERT INTO shop_thing_tags (thing_id, tag_id) VALUES (1, 1)",
        ["loses 1 row of shop_thing_tags", "loses 1 row of shop_tag"],
    ),
    "a model with many to many": (
        'migrations.CreateModel("Tag", [("id", models.BigAutoField(primary_key=True)), '
        '("things", models.ManyToManyField(to="shop.thing"))])',
        "INSERT INTO shop_tag DEFAULT VALUES; INSERT INTO shop_tag_things (tag_id, thing_id) VALUES (1, 1), (1, 2)",
        ["loses 2 rows of shop_tag_things", "loses 1 row of shop_tag"],
    ),
    "a table of raw SQL": (
        raw("CREATE TABLE bag (id int)", "-- first;\nDROP TABLE /* it */ IF EXISTS bag"),
        "INSERT INTO bag VALUES (1), (2)",
        ["loses 2 rows of bag"],
    ),
    "a column of raw SQL": (
        raw('ALTER TABLE shop_thing ADD COLUMN "Öl" int, ADD y int', 'ALTER TABLE shop_thing DROP "Öl", DROP COLUMN y'),
        'UPDATE shop_thing SET "Öl" = 1',
        ["loses 2 values of shop_thing.Öl"],
    ),
    "a list of raw SQL": (
        'migrations.RunSQL(["SELECT 1"], [("DELETE FROM shop_thing WHERE name = %s", ["a"])])',
        "",
        ["loses 1 row of shop_thing"],
    ),
    "datetime to date": (
        f"{alter('at', 'DateField(null=True)')}, {alter('at', 'DateTimeField(null=True)')}",
        "UPDATE shop_thing SET at = '2026-03-07 12:00'",
        ["changes 2 values of shop_thing.at, from timestamp with time zone to date"],
    ),
    "a date that is a date": (
        f"{alter('at', 'DateField(null=True)')}, {alter('at', 'DateTimeField(null=True)')}",
        "UPDATE shop_thing SET at = '2026-03-07 00:00Z'",
        [],
    ),
    "a smaller scale": (
        alter("price", "DecimalField(max_digits=12, decimal_places=4, null=True)"),
        "UPDATE shop_thing SET price = price + 0.0001",
        ["changes 2 values of shop_thing.price, from numeric(12,4) to numeric (10, 2)"],
    ),
    "float to int": (
        alter("weight", "FloatField(null=True)"),
        "UPDATE shop_thing SET weight = 0.5 WHERE id = 2",
        ["changes 1 value of shop_thing.weight, from double precision to integer"],
    ),
    "text to varchar that is cut": (
        f"{alter('name', 'CharField(max_length=5)')}, {alter('name', 'TextField()')}",
        "UPDATE shop_thing SET name = 'abcdefgh' WHERE id = 1",
        ["changes 1 value of shop_thing.name, from text to varchar (5)"],
    ),
    "NULLs that are filled": (
        f"{field('size', 'IntegerField(default=7)')}, {alter('size', 'IntegerField(null=True)')}",
        "UPDATE shop_thing SET size = 1 WHERE id = 1",
        ["fills 1 NULL of shop_thing.size", "loses 1 value of shop_thing.size"],
    ),
    "a delete": (raw("SELECT 1", "DELETE FROM shop_thing"), "", ["loses 2 rows of shop_thing"]),
    "a delete that finds nothing": (raw("SELECT 1", "DELETE FROM shop_thing WHERE name = 'no; one'"), "", []),
    "a delete behind a comment": (
        raw("SELECT 1", "/* x */ DELETE FROM shop_thing t"),
        "",
        ["runs /* x */ DELETE FROM shop_thing t" + NOT_TOLD],
    ),
    "a delete in a query": (
        raw("SELECT 1", "WITH gone AS (DELETE FROM shop_thing RETURNING id) SELECT count(*) FROM gone"),
        "",
        ["runs WITH gone AS (DELETE FROM shop_thing RETURNING id) SELECT count(*) FROM gone" + NOT_TOLD],
    ),
    "an update": (
        raw("SELECT 1", "UPDATE shop_thing SET weight = 0 WHERE weight > 0"),
        "",
        ["writes over 1 row of shop_thing"],
    ),
    "a truncate": (raw("SELECT 1", "TRUNCATE TABLE shop_thing RESTART IDENTITY"), "", ["loses 2 rows of shop_thing"]),
    "a block of code": (
        raw("SELECT 1", "DO $$ BEGIN DELETE FROM shop_thing; END $$"),
        "",
        ["runs DO $$ BEGIN DELETE FROM shop_thing; END $$" + NOT_TOLD],
    ),
    "a function": (
        raw("SELECT 1", "SELECT empty()"),
        "CREATE FUNCTION empty() RETURNS void LANGUAGE sql AS 'DELETE FROM shop_thing'",
        ["runs SELECT empty()" + NOT_TOLD],
    ),
    "a schema": (
        raw("CREATE SCHEMA hall", "DROP SCHEMA hall CASCADE"),
        "CREATE TABLE hall.x (id int)",
        ["runs DROP SCHEMA hall CASCADE" + NOT_TOLD],
    ),
    "harmless SQL": (
        raw(
            "CREATE INDEX by_name ON shop_thing (name)",
            "DROP INDEX by_name; COMMENT ON TABLE shop_thing IS 'DROP TABLE x'; SELECT now()",
        ),
        "",
        [],
    ),
    "Python": (
        "migrations.RunPython(noop, backwards)",
        "",
        ["runs code, shop.migrations.0002_trial.backwards" + NOT_TOLD],
    ),
    "Python that does nothing": ("migrations.RunPython(backwards, migrations.RunPython.noop)", "", []),
    "an operation of their own": ("Own()", "", ["runs code, Own operation" + NOT_TOLD]),
    "both halves": (
        f"migrations.SeparateDatabaseAndState([{raw('CREATE TABLE bag (id int)', 'DROP TABLE bag')}], [])",
        "INSERT INTO bag VALUES (1)",
        ["loses 1 row of bag"],
    ),
    "what is renamed in the same run": (
        f'{field("note", "TextField(null=True)")}, migrations.RenameField("thing", "note", "remark"), '
        'migrations.RenameModel("Thing", "Article")',
        "UPDATE shop_article SET remark = 'x'",
        ["loses 2 values of shop_article.remark"],
    ),
    "a table that is renamed": (
        f'{TAG}, migrations.AlterModelTable("tag", "labels")',
        "INSERT INTO labels DEFAULT VALUES",
        ["loses 1 row of labels"],
    ),
    "a table that raw SQL renames and moves": (
        raw(
            "CREATE SCHEMA hall; CREATE TABLE hall.sack (id int)",
            "ALTER TABLE hall.sack RENAME TO bag; ALTER TABLE hall.bag SET SCHEMA public; DROP TABLE bag",
        ),
        "INSERT INTO hall.sack VALUES (1)",
        ["loses 1 row of hall.sack"],
    ),
    "names that need quotes": (
        """migrations.CreateModel("User", [
            ("id", models.BigAutoField(primary_key=True)), ("at", models.TextField(null=True, db_column="No.te")),
        ], {"db_table": "Or.der"}), migrations.AddField("user", "note", models.TextField(null=True, db_column="select"))
        """,
        """INSERT INTO "Or.der" ("select") VALUES ('a')""",
        ['loses 1 value of "Or.der".select', 'loses 1 row of "Or.der"'],
    ),
    "names of raw SQL that need quotes": (
        raw('ALTER TABLE shop_thing ADD "a,""b" int', 'ALTER TABLE shop_thing DROP "a,""b";'),
        'UPDATE shop_thing SET "a,""b" = 1',
        ['loses 2 values of shop_thing.a,"b'],
    ),
    "what is removed and comes back empty": (
        f'{field("note", "TextField(null=True)")}, migrations.RemoveField("thing", "note"), '
        f'{TAG}, migrations.DeleteModel("Tag")',
        "",
        [],
    ),
    "a view on a column": (
        field("note", "TextField(null=True)"),
        "CREATE VIEW notes AS SELECT note FROM shop_thing; CREATE MATERIALIZED VIEW more AS SELECT * FROM notes",
        ["drops with shop_thing.note: materialized view more, view notes"],
    ),
    "a delete that cascades": (
        raw("SELECT 1", "DELETE FROM shop_thing WHERE id > 0"),
        "CREATE TABLE part (thing bigint REFERENCES shop_thing ON DELETE CASCADE, whole bigint REFERENCES shop_thing)",
        ["loses 2 rows of shop_thing, and what points to them in part"],
    ),
    "a truncate that cascades": (
        raw("SELECT 1", "TRUNCATE shop_thing CASCADE"),
        "CREATE TABLE part (thing bigint REFERENCES shop_thing)",
        ["loses 2 rows of shop_thing", "empties with shop_thing: part"],
    ),
    "what others have computed": (
        raw(
            "ALTER TABLE shop_thing ADD COLUMN double int GENERATED ALWAYS AS (weight * 2) STORED",
            "ALTER TABLE shop_thing DROP COLUMN double",
        ),
        "",
        [],
    ),
    "tables of the same name": (
        raw("CREATE SCHEMA hall; CREATE TABLE hall.bag (id int)", "DROP TABLE hall.bag; DROP SCHEMA hall"),
        "CREATE TABLE bag (id int); INSERT INTO bag VALUES (1); INSERT INTO hall.bag VALUES (1), (2)",
        ["loses 2 rows of hall.bag", "runs DROP SCHEMA hall" + NOT_TOLD],
    ),
    "a table that a function fills": (
        raw("SELECT 1", "CREATE TABLE bag AS SELECT empty()"),
        "CREATE FUNCTION empty() RETURNS int LANGUAGE sql AS 'DELETE FROM shop_thing RETURNING 1'",
        ["runs CREATE TABLE bag AS SELECT empty()" + NOT_TOLD],
    ),
    "a function in a default": (
        raw("SELECT 1", "ALTER TABLE shop_thing ADD size int DEFAULT empty()"),
        "CREATE FUNCTION empty() RETURNS int LANGUAGE sql AS 'DELETE FROM shop_thing RETURNING 1'",
        ["runs ALTER TABLE shop_thing ADD size int DEFAULT empty()" + NOT_TOLD],
    ),
    "a procedure": (
        raw("SELECT 1", "CALL empty()"),
        "CREATE PROCEDURE empty() LANGUAGE sql AS 'DELETE FROM shop_thing'",
        ["runs CALL empty()" + NOT_TOLD],
    ),
    "a large object": (
        raw("SELECT 1", "SELECT lo_unlink(oid) FROM pg_largeobject_metadata"),
        "SELECT lo_create(0)",
        ["runs SELECT lo_unlink(oid) FROM pg_largeobject_metadata" + NOT_TOLD],
    ),
    "a sequence": (
        raw("SELECT 1", "ALTER SEQUENCE shop_thing_id_seq RESTART"),
        "",
        ["runs ALTER SEQUENCE shop_thing_id_seq RESTART" + NOT_TOLD],
    ),
    "an identity": (
        raw("SELECT 1", "ALTER TABLE shop_thing ALTER id RESTART WITH 100"),
        "",
        ["runs ALTER TABLE shop_thing ALTER id RESTART WITH 100" + NOT_TOLD],
    ),
    "a trigger on an update": (
        raw("SELECT 1", "UPDATE shop_thing SET weight = 0 WHERE weight > 0"),
        TRIGGER,
        ["runs UPDATE shop_thing SET weight = 0 WHERE weight > 0" + NOT_TOLD, "writes over 1 row of shop_thing"],
    ),
    "a trigger on an insert that the way back makes": (
        raw(
            "SELECT 1",
            "CREATE TRIGGER also AFTER INSERT ON shop_thing EXECUTE FUNCTION empty(); "
            "INSERT INTO shop_thing (name) VALUES ('c')",
        ),
        TRIGGER.replace("UPDATE", "TRUNCATE"),
        ["runs INSERT INTO shop_thing (name) VALUES ('c')" + NOT_TOLD],
    ),
    "a trigger when Django fills": (
        f"{field('size', 'IntegerField(default=7)')}, {alter('size', 'IntegerField(null=True)')}",
        TRIGGER,
        [
            'runs UPDATE "shop_thing" SET "size" = 7 WHERE "size" IS NULL' + NOT_TOLD,
            "fills 2 NULLs of shop_thing.size",
        ],
    ),
    "views that it has made and that it has not": (
        raw("CREATE VIEW ours AS SELECT 1", "DROP VIEW ours; DROP VIEW IF EXISTS theirs; DROP FUNCTION f()"),
        "CREATE VIEW theirs AS SELECT 1; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        [
            "drops view theirs; the SQL of this migration does not tell whether it made that",
            "drops function f; the SQL of this migration does not tell whether it made that",
        ],
    ),
    "a materialized view": (
        raw("SELECT 1", "ALTER MATERIALIZED VIEW names RENAME TO more; DROP MATERIALIZED VIEW more"),
        "CREATE MATERIALIZED VIEW names AS SELECT name FROM shop_thing",
        ["loses 2 rows of names"],
    ),
    "an index that it has not made": (
        raw("SELECT 1", "DROP INDEX by_name"),
        "CREATE INDEX by_name ON shop_thing (name)",
        ["drops index by_name; the SQL of this migration does not tell whether it made that"],
    ),
    "what nobody knows": (
        raw("SELECT 1", "SET LOCAL search_path = public"),
        "",
        ["runs SET LOCAL search_path = public" + NOT_TOLD],
    ),
    "a condition under the names of the way back": (
        raw(
            "SELECT 1",
            "ALTER TABLE shop_thing RENAME name TO title; ALTER TABLE shop_thing RENAME TO article; "
            "DELETE FROM article WHERE article.title = 'a'",
        ),
        "",
        ["loses 1 row of shop_thing"],
    ),
    "an enum that loses no value that is used": (
        raw(
            "CREATE TYPE mood AS ENUM ('sad', 'happy'); ALTER TABLE shop_thing ADD mood mood",
            "ALTER TYPE mood RENAME TO old; CREATE TYPE mood AS ENUM ('sad'); "
            "ALTER TABLE shop_thing ALTER COLUMN mood TYPE mood USING mood::text::mood; DROP TYPE old",
        ),
        "UPDATE shop_thing SET mood = 'sad'",
        [],
    ),
    "keys that are set to NULL": (
        raw("SELECT 1", "DELETE FROM shop_thing"),
        "CREATE TABLE part (thing bigint REFERENCES shop_thing ON DELETE SET NULL)",
        ["loses 2 rows of shop_thing, and what points to them in part"],
    ),
    "a function and a key on a table": (
        TAG,
        "CREATE FUNCTION tags() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM shop_tag; END; "
        "CREATE TABLE line (tag bigint CONSTRAINT line_tag REFERENCES shop_tag)",
        ["drops with shop_tag: constraint line_tag on table line, function tags()"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes_is_named_before_it_goes(things, scratch, case):
    operations, data, losses = CASES[case]
    trial(things, scratch, operations, data, "shop_article" if "Article" in operations else "shop_thing")
    before = now(scratch)
    done = things.run("rollback", "--steps", "1")
    assert told(done.out) == losses, done
    if losses:
        assert "Add --yes to lose them." in done.err
        assert now(scratch) == before
        things.succeed("rollback", "--steps", "1", "--yes")
    assert recorded(scratch) == {"0001_items"}


def test_what_a_later_run_renamed_is_found_under_its_present_name(things, scratch):
    things.write("0002_tag", TAG)
    things.write("0003_note", field("note", "TextField(null=True)"))
    things.succeed("migrate")
    things.write(
        "0004_rename", 'migrations.RenameModel("Tag", "Label"), migrations.RenameField("thing", "note", "remark")'
    )
    things.write("0005_table", 'migrations.AlterModelTable("thing", "articles")')
    things.succeed("migrate")
    more = "INSERT INTO shop_label DEFAULT VALUES; UPDATE articles SET remark = 'x'"
    sql(scratch, f"{TWO.replace('shop_thing', 'articles')}; {more}")
    assert told(things.succeed("rollback", "--steps", "4", "--plan")) == [
        "loses 2 values of articles.remark",
        "loses 1 row of shop_label",
    ]


def test_a_table_that_somebody_has_locked_counts_as_lost(things, scratch):
    trial(things, scratch, TAG)
    with scratch.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE shop_tag IN ACCESS EXCLUSIVE MODE")
        (loss,) = told(things.succeed("rollback", "--steps", "1", "--plan"))
        cursor.execute("COMMIT")
    assert loss.startswith("loses rows of shop_tag, which could not be counted: OperationalError: canceling statement")


def test_rows_that_a_policy_hides_count_as_lost(things, scratch):
    trial(things, scratch, TAG, "INSERT INTO shop_tag DEFAULT VALUES")
    role = scratch.settings_dict["NAME"]
    sql(scratch, f"CREATE ROLE {role}")
    try:
        sql(
            scratch,
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; ALTER TABLE shop_tag ENABLE ROW LEVEL SECURITY",
        )
        things.settings(f'DATABASES["default"]["OPTIONS"] = {{"assume_role": "{role}"}}\n')
        (loss,) = told(things.succeed("rollback", "--steps", "1", "--plan"))
        assert loss.startswith("loses rows of shop_tag, which could not be counted: ProgrammingError: query would be")
    finally:
        sql(scratch, f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_what_was_there_before_is_not_lost(things, scratch, attributes):
    """The way back leaves it, so there is nothing to agree to."""
    sql(scratch, "CREATE TABLE shop_tag (id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY)")
    things.write("0002_trial", TAG, attributes)
    things.succeed("migrate")
    sql(scratch, "INSERT INTO shop_tag DEFAULT VALUES")
    before = look(scratch), rows(scratch)
    assert told(things.succeed("rollback", "--steps", "1")) == []
    assert (look(scratch), rows(scratch)) == before
    assert recorded(scratch) == {"0001_items"}
