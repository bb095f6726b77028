"""Do Django's own options of migrate and showmigrations work as they do without us?"""

import pytest
from django.db.migrations.recorder import MigrationRecorder

from gotong_royong.zero_downtime.models import Run, Step
from tests.databases import look, url

pytestmark = pytest.mark.once

ITEM = 'migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True)), ("size", models.IntegerField())])'
LEDGER = "20260211000000_create_zero_downtime_run_and_step_tables"


def applied(database):
    return sorted(name for app, name in MigrationRecorder(database).applied_migrations() if app == "shop")


def columns(database):
    return {line.split(" | ")[1] for line in look(database)["columns"] if line.startswith("items |")}


def run(database):
    return Run.objects.using(database.alias).latest("pk")


@pytest.mark.parametrize(
    "arguments",
    [["--backup", ""], ["shop", ""], [""], ["--plan", "shop", ""], ["--backup", "", "--plan"]],
)
def test_an_argument_that_is_empty_is_refused_before_anything_is_done(shop, scratch, arguments):
    said = shop.fail("migrate", *arguments)
    assert said.startswith("CommandError: The argument ")
    assert "is empty, as with an unset shell variable. Nothing was done." in said
    assert said.count("\n") == 1
    assert look(scratch)["columns"] == set()


@pytest.mark.parametrize("command", ["showmigrations", "lintmigrations --since", "backfill run"])
def test_it_is_by_the_other_commands_too(shop, command):
    assert "is empty, as with an unset shell variable" in shop.fail(*command.split(), "")


@pytest.fixture
def two(shop):
    shop.write("0002_size", 'column("items", "size")')
    return shop


def test_fake_up_and_down(two, scratch):
    assert "Applying shop.0002_size... FAKED" in two.succeed("migrate", "--fake")
    assert applied(scratch) == ["0001_items", "0002_size"]
    assert columns(scratch) == set()
    assert set(run(scratch).steps.values_list("faked", flat=True)) == {True}
    assert "Unapplying shop.0002_size... FAKED" in two.succeed("migrate", "shop", "0001", "--fake")
    assert applied(scratch) == ["0001_items"]
    assert run(scratch).steps.get().direction == "down"


def test_fake_initial(shop, scratch):
    shop.write("0001_items", ITEM, "initial = True")
    with scratch.cursor() as cursor:
        cursor.execute("CREATE TABLE shop_item (id int PRIMARY KEY, size int)")
    assert "Applying shop.0001_items... FAKED" in shop.succeed("migrate", "--fake-initial")
    assert applied(scratch) == ["0001_items"]


def test_to_a_name_back_to_it_and_to_zero(two, scratch):
    two.succeed("migrate", "shop", "0001")
    assert columns(scratch) == {"id"}
    two.succeed("migrate", "shop", "0002_size")
    assert columns(scratch) == {"id", "size"}
    two.succeed("migrate", "shop", "0001")
    assert columns(scratch) == {"id"}
    two.succeed("migrate", "shop", "zero")
    assert columns(scratch) == set()
    assert applied(scratch) == []
    assert Run.objects.using(scratch.alias).count() == 4
    assert "[ ] 0001_items" in two.succeed("showmigrations")


def test_check_changes_nothing(two, scratch):
    before = look(scratch)
    assert two.run("migrate", "--check").code == 1
    assert look(scratch) == before
    two.succeed("migrate")
    two.succeed("migrate", "--check")
    assert Run.objects.using(scratch.alias).count() == 1


def test_prune(two, scratch):
    two.succeed("migrate")
    two.write("0001_items", 'migrations.RunSQL("SELECT 1")', "replaces = []")
    (two.migrations / "0002_size.py").unlink()
    assert "Pruning shop.0002_size OK" in two.succeed("migrate", "--prune", "shop")
    assert applied(scratch) == ["0001_items"]


def test_an_app_without_migrations(two, scratch):
    note = "from django.db import models\nclass Note(models.Model):\n    text = models.TextField()\n"
    two.app("notes", models=note)
    assert "Creating table notes_note" in two.succeed("migrate", "--run-syncdb")
    assert "notes_note | text | text | True | None" in look(scratch)["columns"]
    assert "Creating table notes_note" not in two.succeed("migrate", "--run-syncdb")
    assert "notes\n (no migrations)" in two.succeed("showmigrations", "notes")


def test_without_the_ledger_and_with_it_again(two, scratch):
    two.succeed("migrate")
    two.succeed("migrate", "zero_downtime", "zero")
    assert "zero_downtime" not in str(look(scratch)["columns"])
    assert "[X] 0002_size" in two.succeed("showmigrations")
    two.succeed("migrate")
    assert "zero_downtime" in str(look(scratch)["columns"])
    two.write("0003_color", 'column("items", "color")')
    two.succeed("migrate")
    assert Step.objects.using(scratch.alias).get().name == "0003_color"


ROUTER = """
class Router:
    def allow_migrate(self, db, app_label, **hints):
        return app_label == "zero_downtime" or (app_label == "notes") == (db == "other")

INSTALLED_APPS.append("notes")
DATABASE_ROUTERS = ["shop_settings.Router"]
"""


def test_a_second_postgresql_has_a_ledger_of_its_own(two, scratch, another):
    two.settings(f'{ROUTER}DATABASES["other"] = dj_database_url.parse({url(another)!r})\n')
    two.write("0001_note", ITEM, app="notes")
    assert "Applying notes.0001_note... OK" in two.succeed("migrate", "--database", "other")
    tables = {line.split(" | ")[0] for line in look(another)["columns"]}
    assert "notes_item" in tables
    assert Run.objects.using(another.alias).count() == 1
    assert "zero_downtime_run" not in str(look(scratch)["columns"])
    two.succeed("migrate")
    assert "notes_item" not in str(look(scratch)["columns"])
    assert "[X] 0001_note" in two.succeed("showmigrations", "--database", "other")
    assert "run 1" in two.succeed("showmigrations", "notes", "--database", "other")
    two.succeed("rollback", "--yes", "--all", "--database", "other")
    assert "notes_item" not in str(look(another)["columns"])


def test_sqlite_is_migrated_as_django_does(two, scratch, tmp_path):
    file = tmp_path / "notes.sqlite3"
    two.settings(f'{ROUTER}DATABASES["other"] = {{"ENGINE": "django.db.backends.sqlite3", "NAME": {str(file)!r}}}\n')
    two.write("0001_note", ITEM, app="notes")
    assert "Applying notes.0001_note... OK" in two.succeed("migrate", "--database", "other")
    assert "[X] 0001_note" in two.succeed("showmigrations", "notes", "--database", "other")
    said = two.fail("rollback", "--database", "other")
    told = "other is not a PostgreSQL database, so no run on it was recorded. Name one with --database."
    assert said == f"NotUndoable: {told}\n"
    two.succeed("migrate", "notes", "zero", "--database", "other")


TEST = """
from django.test import TestCase
from django.db import connection
from gotong_royong.zero_downtime.models import Run

class Trial(TestCase):
    def test(self):
        self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))
        self.assertIn("items", connection.introspection.table_names())
        self.assertFalse(Run.objects.exists())
"""


def test_a_test_database_has_no_ledger_rows(two):
    (two.folder / "shop" / "tests.py").write_text(TEST)
    assert "OK" in two.run("test", "shop").err
