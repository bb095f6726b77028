"""Is a way back refused that must fail or that nobody has agreed to?"""

import os
import pty
import subprocess
import sys
import time

import pytest
from django.conf import settings

from tests.zero_downtime.test_recall import recorded, sql
from tests.zero_downtime.things import TAG, THING, alter, field, now, raw, told, trial

pytestmark = pytest.mark.once

FOREIGN = "ForeignKey('shop.tag', models.CASCADE, null=True"

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
