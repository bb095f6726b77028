"""Is whatever a way back may destroy named before it is done, and what it cannot do said before it begins?"""

import os
import pty
import subprocess
import sys
import time

import pytest
from django.conf import settings

from tests.test_migrations import look
from tests.zero_downtime.test_recall import recorded, sql

pytestmark = pytest.mark.once

THING = """migrations.CreateModel("Thing", [
    ("id", models.BigAutoField(primary_key=True)),
    ("name", models.TextField()),
    ("at", models.DateTimeField(null=True)),
    ("price", models.DecimalField(max_digits=10, decimal_places=2, null=True)),
    ("weight", models.IntegerField(null=True)),
])"""
TWO = """
    INSERT INTO shop_thing (name, at, price, weight)
    VALUES ('a', '2026-03-07 12:00', 1.5, 1), ('bcd', NULL, 2.25, NULL)
"""
NOT_TOLD = ": what is lost cannot be told"
TAGS = "ManyToManyField(to='shop.tag')"
TAG = 'migrations.CreateModel("Tag", [("id", models.BigAutoField(primary_key=True))])'


def field(name, kind):
    return f'migrations.AddField("thing", "{name}", models.{kind})'


def alter(name, kind):
    return f'migrations.AlterField("thing", "{name}", models.{kind})'


def raw(forwards, backwards):
    return f'migrations.RunSQL("""{forwards}""", """{backwards}""")'


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
        ["changes 2 values of shop_thing.price, from numeric(12,4) to numeric ( 10 , 2 )"],
    ),
    "float to int": (
        alter("weight", "FloatField(null=True)"),
        "UPDATE shop_thing SET weight = 0.5 WHERE id = 2",
        ["changes 1 value of shop_thing.weight, from double precision to integer"],
    ),
    "text to varchar that is cut": (
        f"{alter('name', 'CharField(max_length=5)')}, {alter('name', 'TextField()')}",
        "UPDATE shop_thing SET name = 'abcdefgh' WHERE id = 1",
        ["changes 1 value of shop_thing.name, from text to varchar ( 5 )"],
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
    "a function and a key on a table": (
        TAG,
        "CREATE FUNCTION tags() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM shop_tag; END; "
        "CREATE TABLE line (tag bigint CONSTRAINT line_tag REFERENCES shop_tag)",
        ["drops with shop_tag: constraint line_tag on table line, function tags()"],
    ),
}
CODE = """
def backwards(apps, editor):
    pass
noop = migrations.RunPython.noop
class Own(migrations.operations.base.Operation):
    reduces_to_sql = False
    def state_forwards(self, app_label, state): pass
    def database_forwards(self, *arguments): pass
    def database_backwards(self, *arguments): pass
    def describe(self): return "Own operation"
"""


@pytest.fixture
def things(shop):
    shop.write("0001_items", THING)
    return shop


def trial(shop, database, operations, data="", table="shop_thing"):
    """Migrate two rows of a table, and then change the data."""
    shop.write("0002_trial", operations)
    path = shop.migrations / "0002_trial.py"
    path.write_text(path.read_text().replace("\nclass Migration", f"{CODE}\nclass Migration"))
    shop.succeed("migrate")
    sql(database, f"{TWO.replace('shop_thing', table)}; {data}")


def rows(database):
    tables = [name for (name,) in sql(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    theirs = [name for name in tables if not name.startswith(("zero_downtime", "django"))]
    return {name: sql(database, f'SELECT t::text FROM "{name}" t ORDER BY 1') for name in theirs}


def told(out):
    """Return what is said of the steps, without the steps."""
    return [line.strip() for line in out.splitlines() if line.startswith("    ")]


def now(database):
    return look(database), recorded(database), rows(database), sql(database, "SELECT count(*) FROM zero_downtime_run")


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


# What is migrated, what happens to the data, and why the way back must fail.
FAILING = {
    "NULL": (
        alter("name", "TextField(null=True)"),
        "UPDATE shop_thing SET name = NULL WHERE id = 1",
        "must fail: shop_thing.name may not be NULL then, and is in 1 row",
    ),
    "too long": (
        f"{field('code', 'CharField(max_length=3, null=True)')}, {alter('code', 'CharField(max_length=9, null=True)')}",
        "UPDATE shop_thing SET code = 'abcdef' WHERE id = 1",
        "must fail: 1 value of shop_thing.code would be too long for varchar ( 3 )",
    ),
    "no number": (
        f"{alter('weight', 'TextField(null=True)')}",
        "UPDATE shop_thing SET weight = 'heavy' WHERE id = 1",
        "must fail: shop_thing.weight cannot be converted from text to integer: InvalidTextRepresentation",
    ),
    "too large": (
        alter("weight", "BigIntegerField(null=True)"),
        "UPDATE shop_thing SET weight = 5000000000 WHERE id = 1",
        "must fail: shop_thing.weight cannot be converted from bigint to integer: NumericValueOutOfRange",
    ),
    "no value for a column that comes back": (
        raw("SELECT 1", "ALTER TABLE shop_thing ADD COLUMN size int NOT NULL"),
        "",
        "must fail: shop_thing has rows, and size comes back NOT NULL without a value for them",
    ),
    "what is to be unique": (
        f"{alter('name', 'TextField(unique=True)')}, {alter('name', 'TextField()')}",
        "UPDATE shop_thing SET name = 'same'",
        "must fail: shop_thing has several rows with the same name",
    ),
    "what is to be checked": (
        raw("SELECT 1", "ALTER TABLE shop_thing ADD CONSTRAINT some CHECK (weight >= 2 OR (price IN (0, 1)))"),
        "",
        "must fail: 1 row of shop_thing would break the check ( weight >= 2 OR ( price IN ( 0 , 1 ) ) )",
    ),
    "a view on what raw SQL drops": (
        raw("CREATE TABLE bag (id int)", "DROP TABLE bag"),
        "CREATE VIEW bags AS SELECT * FROM bag",
        "must fail: bag cannot be dropped, for view bags cannot be without it",
    ),
    "a view on a column whose type changes": (
        alter("weight", "BigIntegerField(null=True)"),
        "CREATE VIEW weights AS SELECT weight FROM shop_thing",
        "must fail: the type of shop_thing.weight cannot be altered, for a view shows it",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_way_back_that_must_fail_is_refused_before_it_begins(things, scratch, case):
    operations, data, reason = FAILING[case]
    trial(things, scratch, operations, data)
    before = now(scratch)
    done = things.run("rollback", "--steps", "1", "--yes")
    assert reason in told(done.out), done
    assert "The way back must fail, as is said above. Nothing was changed." in done.err
    assert now(scratch) == before


def test_what_may_be_mended_on_the_way_back_may_only_fail(things, scratch):
    """Python, or SQL that writes, may fill what is NULL now; so it is tried."""
    fill = raw("SELECT 1", "UPDATE shop_thing SET name = coalesce(name, 'x')")
    trial(things, scratch, f"{alter('name', 'TextField(null=True)')}, {fill}", "UPDATE shop_thing SET name = NULL")
    out = things.succeed("rollback", "--steps", "1", "--yes")
    assert "may fail: shop_thing.name may not be NULL then, and is in 2 rows" in told(out)
    assert sql(scratch, "SELECT DISTINCT name FROM shop_thing") == [("x",)]


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


def test_all_tables_of_the_project_go_only_if_that_is_meant(shop, scratch):
    """Though something is applied still."""
    shop.models("class Thing(models.Model):\n    name = models.TextField()")
    shop.write("0001_items", raw("CREATE TABLE bag (id int)", "DROP TABLE bag"))
    shop.succeed("migrate")
    shop.write("0002_thing", THING)
    shop.succeed("migrate")
    assert "nothing is left of the database" in shop.fail("rollback", "--yes")
    shop.succeed("rollback", "--yes", "--all")


class TestInTerminal:
    """What is counted is counted again after the answer."""

    def start(self, shop, *arguments):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "django", "rollback", "--no-color", *arguments]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{shop.folder}{os.pathsep}{settings.BASE_DIR}",
            "DJANGO_SETTINGS_MODULE": "shop_settings",
            "DATABASE_URL": shop.address,
            "TERM": "dumb",
        }
        process = subprocess.Popen(
            command, env=environment, cwd=shop.folder, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        return process, ours

    def read(self, ours, until):
        text = ""
        end = time.monotonic() + 60
        while until not in text and time.monotonic() < end:
            try:
                text += os.read(ours, 4096).decode()
            except OSError:  # the process has ended
                break
        assert until in text, text
        return text

    def test_more_has_come_meanwhile(self, things, scratch):
        trial(things, scratch, TAG, "INSERT INTO shop_tag DEFAULT VALUES")
        process, ours = self.start(things, "--steps", "1")
        assert "loses 1 row of shop_tag" in self.read(ours, "Type yes to go on: ")
        sql(scratch, "INSERT INTO shop_tag DEFAULT VALUES")
        os.write(ours, b"yes\n")
        again = self.read(ours, "Type yes to go on: ")
        assert "That has changed meanwhile. By now it is:" in again
        assert "shop.0002_trial loses 2 rows of shop_tag" in again
        os.write(ours, b"yes\n")
        self.read(ours, "Took back 1 migration")
        assert process.wait(60) == 0

    def test_the_name_of_the_database(self, things, scratch):
        things.succeed("migrate")
        process, ours = self.start(things)
        self.read(ours, "Type its name to go on: ")
        os.write(ours, b"yes\n")
        self.read(ours, "Nothing was changed.")
        assert process.wait(60) == 1
        process, ours = self.start(things)
        self.read(ours, "Type its name to go on: ")
        os.write(ours, scratch.settings_dict["NAME"].encode() + b"\n")
        self.read(ours, "Took back 1 migration")
        assert process.wait(60) == 0
        assert recorded(scratch) == set()
