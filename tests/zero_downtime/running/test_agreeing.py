"""Is a way back refused that must fail or that nobody has agreed to?"""

import os
import pty
import subprocess
import sys
import time

import pytest
from django.conf import settings

from tests.zero_downtime.running.test_recall import recorded, sql
from tests.zero_downtime.things import TAG, THING, alter, field, now, raw, told, trial

pytestmark = pytest.mark.once

FOREIGN = "ForeignKey('shop.tag', models.CASCADE, null=True"

# What is migrated, what happens to the data, and why the way back must fail.
FAILING = {
    "NULL": (
        alter("name", "TextField(null=True)"),
        "UPDATE shop_thing SET name = NULL WHERE id = 1",
        "must fail: shop_thing.name becomes NOT NULL, and is NULL in 1 row",
    ),
    "too long": (
        f"{field('code', 'CharField(max_length=3, null=True)')}, {alter('code', 'CharField(max_length=9, null=True)')}",
        "UPDATE shop_thing SET code = 'abcdef' WHERE id = 1",
        "must fail: 1 value of shop_thing.code would be too long for varchar (3)",
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
        "must fail: 1 row of shop_thing would break the check (weight >= 2 or (price in (0, 1)))",
    ),
    "what is to be checked, under another name": (
        raw(
            "SELECT 1",
            "ALTER TABLE shop_thing RENAME weight TO heft; ALTER TABLE shop_thing RENAME TO heavy; "
            "ALTER TABLE heavy ADD CHECK (heft >= 2)",
        ),
        "",
        "must fail: 1 row of shop_thing would break the check (heft >= 2)",
    ),
    "a unique index": (
        raw("SELECT 1", "CREATE UNIQUE INDEX one ON shop_thing (lower(name)) WHERE price > 0"),
        "UPDATE shop_thing SET name = CASE weight WHEN 1 THEN 'A' ELSE 'a' END",
        "must fail: shop_thing has several rows with the same lower (name)",
    ),
    "a primary key": (
        raw("SELECT 1", "ALTER TABLE shop_thing DROP CONSTRAINT shop_thing_pkey, ADD PRIMARY KEY (name)"),
        "UPDATE shop_thing SET name = 'same'",
        "must fail: shop_thing has several rows with the same name",
    ),
    "a foreign key": (
        f"{TAG}, {field('tag', FOREIGN + ')')}, {alter('tag', FOREIGN + ', db_constraint=False)')}",
        "UPDATE shop_thing SET tag_id = 5 WHERE id = 1",
        "must fail: 1 row of shop_thing would point to what is not in shop_tag",
    ),
    "a value that an enum has no more": (
        raw(
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE shop_thing ADD mood mood DEFAULT 'ok'; "
            "ALTER TYPE mood ADD VALUE 'happy'",
            "ALTER TABLE shop_thing ALTER mood DROP DEFAULT; ALTER TYPE mood RENAME TO old; "
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); "
            "ALTER TABLE shop_thing ALTER COLUMN mood TYPE mood USING mood::text::mood; DROP TYPE old",
        ),
        "UPDATE shop_thing SET mood = 'happy' WHERE id = 1",
        "must fail: 1 row of shop_thing.mood has no such value in mood",
    ),
    "a view on what raw SQL drops": (
        raw("CREATE TABLE bag (id int)", "DROP TABLE bag"),
        "CREATE VIEW bags AS SELECT * FROM bag",
        "must fail: bag cannot be dropped, because view bags depends on it",
    ),
    "a view on a column whose type changes": (
        alter("weight", "BigIntegerField(null=True)"),
        "CREATE VIEW weights AS SELECT weight FROM shop_thing",
        "must fail: the type of shop_thing.weight cannot be altered, because a view uses it",
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
    assert "may fail: shop_thing.name becomes NOT NULL, and is NULL in 2 rows" in told(out)
    assert sql(scratch, "SELECT DISTINCT name FROM shop_thing") == [("x",)]


def test_all_tables_of_the_project_go_only_if_that_is_meant(shop, scratch):
    """Though something is applied still."""
    shop.models("class Thing(models.Model):\n    name = models.TextField()")
    shop.write("0001_items", raw("CREATE TABLE bag (id int)", "DROP TABLE bag"))
    shop.succeed("migrate")
    shop.write("0002_thing", THING)
    shop.succeed("migrate")
    assert "nothing is left of the database" in shop.fail("rollback", "--yes")
    shop.succeed("rollback", "--yes", "--all")


class TestMigrateBack:
    """Django's own way back names what it destroys, too."""

    def test_no_input_agrees_to_what_goes(self, things, scratch):
        trial(things, scratch, TAG, "INSERT INTO shop_tag DEFAULT VALUES")
        before = now(scratch)
        done = things.run("migrate", "shop", "0001")
        assert told(done.out) == ["loses 1 row of shop_tag"]
        assert "Data would be lost, as listed above. Nothing was changed. Add --no-input to lose them." in done.err
        assert now(scratch) == before
        done = things.run("migrate", "shop", "0001", "--format", "json")
        assert "loses 1 row of shop_tag" in done.out
        assert all(line.startswith("{") for line in done.out.splitlines())
        assert now(scratch) == before
        assert told(things.succeed("migrate", "shop", "0001", "--no-input")) == ["loses 1 row of shop_tag"]
        assert recorded(scratch) == {"0001_items"}

    def test_what_loses_nothing_needs_no_consent(self, things, scratch):
        trial(things, scratch, TAG)
        assert "taken back" not in things.succeed("migrate", "shop", "0001")
        assert recorded(scratch) == {"0001_items"}

    def test_what_must_fail_is_refused(self, things, scratch):
        operations, data, reason = FAILING["NULL"]
        trial(things, scratch, operations, data)
        done = things.run("migrate", "shop", "0001", "--no-input")
        assert told(done.out) == [reason]
        assert "The way back must fail" in done.err

    def test_an_edited_file_is_refused(self, things, scratch):
        trial(things, scratch, raw("SELECT 1", "SELECT 1"))
        things.write("0002_trial", raw("SELECT 1", "DELETE FROM shop_thing"))
        before = now(scratch)
        said = things.fail("migrate", "shop", "0001", "--no-input")
        assert "its file has been edited since run 1 applied it" in said
        assert "rollback --accept-edited" in said
        assert now(scratch) == before

    @pytest.mark.parametrize("attributes", ["", "atomic = False"])
    def test_what_was_there_before_and_what_was_faked_stays(self, things, scratch, attributes):
        sql(scratch, "CREATE TABLE shop_tag (id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY)")
        sql(scratch, "INSERT INTO shop_tag DEFAULT VALUES; CREATE TABLE bag (id int); INSERT INTO bag VALUES (1)")
        things.write("0002_tag", TAG, attributes)
        things.succeed("migrate")
        things.write("0003_bag", raw("CREATE TABLE bag (id int)", "DROP TABLE bag"), attributes)
        things.succeed("migrate", "--fake")
        things.succeed("migrate", "shop", "0001")
        assert recorded(scratch) == {"0001_items"}
        assert sql(scratch, "SELECT (SELECT count(*) FROM shop_tag), (SELECT count(*) FROM bag)") == [(1, 1)]


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_a_view_that_is_made_after_the_answer_stays(things, scratch, attributes):
    """The way back makes it itself, as another session may in that moment."""
    view = raw("SELECT 1", "CREATE VIEW tags AS SELECT * FROM shop_tag")
    things.write("0002_trial", f"{TAG}, {view}", attributes)
    things.succeed("migrate")
    assert told(things.succeed("rollback", "--steps", "1", "--plan")) == []
    assert "Dropping table shop_tag would also drop what depends on it: view tags" in things.fail(
        "rollback", "--steps", "1", "--yes"
    )
    assert sql(scratch, "SELECT to_regclass('shop_tag')") == [("shop_tag",)]


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
