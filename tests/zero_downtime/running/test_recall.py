"""Is a migration recorded again only where the ledger is a witness, and run in every other case?"""

import pytest

from tests.databases import look

pytestmark = [pytest.mark.once, pytest.mark.newest]

LABEL = 'migrations.CreateModel("Label", [("id", models.BigAutoField(primary_key=True)), ("text", models.TextField())])'
INDEX = 'migrations.AddIndex("label", models.Index(fields=["text"], name="by_text"))'
FILL = "migrations.RunSQL(\"INSERT INTO shop_label (text) VALUES ('filled')\", migrations.RunSQL.noop)"
SQUASH = 'replaces = [("shop", "0002_label"), ("shop", "0003_index")]'


@pytest.fixture
def labeled(shop):
    shop.write("0002_label", LABEL)
    shop.write("0003_index", INDEX)
    shop.write("0004_fill", FILL)
    shop.succeed("migrate")
    return shop


def sql(database, statement):
    with database.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def forget(database, names="%"):
    sql(database, f"DELETE FROM django_migrations WHERE app = 'shop' AND name LIKE '{names}'")


def recorded(database):
    return {name for (name,) in sql(database, "SELECT name FROM django_migrations WHERE app = 'shop'")}


def test_what_the_ledger_knows_is_recorded_again_and_named(labeled, scratch):
    before = recorded(scratch)
    forget(scratch)
    out = labeled.succeed("migrate")
    for name in before:
        assert f"django_migrations has lost shop.{name}, which the ledger knows to be applied" in out
    assert recorded(scratch) == before
    assert sql(scratch, "SELECT count(*) FROM shop_label") == [(1,)]


@pytest.mark.parametrize("what", ["showmigrations", "migrate --plan", "rollback --plan"])
def test_who_only_looks_writes_nothing(labeled, scratch, what):
    forget(scratch, "0004%")
    labeled.run(*what.split())
    assert "0004_fill" not in recorded(scratch)


def test_a_new_migration_whose_index_is_there_with_other_columns_is_not_taken_for_applied(labeled, scratch):
    """It was recorded without having run, because an index of its name was there."""
    sql(scratch, "CREATE INDEX by_id ON shop_label (id, text)")
    labeled.write("0005_index", INDEX.replace("by_text", "by_id").replace('["text"]', '["id"]'))
    before = look(scratch)
    said = labeled.fail("migrate")
    assert "The index by_id on shop_label exists already and differs." in said
    assert "--fake" in said
    assert look(scratch) == before
    assert "0005_index" not in recorded(scratch)


def test_without_a_witness_every_operation_is_run(labeled, scratch):
    """What is there and the same is skipped; the data of a RunSQL, which nobody vouches for, is filled in again."""
    forget(scratch, "0004%")
    forget(scratch, "0003%")
    sql(scratch, "TRUNCATE zero_downtime_run CASCADE")
    before = look(scratch)
    out = labeled.succeed("migrate")
    assert "has lost" not in out
    assert "Applying shop.0004_fill... OK" in out
    assert look(scratch) == before
    assert sql(scratch, "SELECT count(*) FROM shop_label") == [(2,)]


def test_what_is_there_and_differs_changes_nothing(labeled, scratch):
    forget(scratch)
    sql(scratch, "TRUNCATE zero_downtime_run CASCADE")
    before = look(scratch)
    said = labeled.fail("migrate")
    assert (
        "No migration of the app shop is recorded as applied, but the table shop_label, which shop.0002_label" in said
    )
    assert "The SQL or Python of shop.0001_items would run a second time. Nothing was changed." in said
    assert "migrate shop NAME --fake" in said
    assert look(scratch) == before
    assert recorded(scratch) == set()


def test_a_file_that_was_edited_since_is_no_witness(labeled, scratch):
    forget(scratch, "0004%")
    labeled.write("0004_fill", FILL.replace("filled", "other"))
    assert "has lost" not in labeled.succeed("migrate")
    assert sql(scratch, "SELECT text FROM shop_label ORDER BY id") == [("filled",), ("other",)]


def test_what_was_undone_since_is_not_recorded_again(labeled, scratch):
    labeled.succeed("rollback", "--steps", "1", "--yes")
    out = labeled.succeed("migrate")
    assert "has lost" not in out
    assert "Applying shop.0004_fill... OK" in out


@pytest.mark.parametrize("files", ["kept", "gone"])
@pytest.mark.parametrize("applied_as", ["the squash", "what it replaces"])
def test_a_squash_is_recorded_with_what_it_replaces(labeled, scratch, files, applied_as):
    """It ran over live tables where its rows were lost."""
    if applied_as == "the squash":
        labeled.succeed("rollback", "--steps", "3", "--yes")
    (labeled.migrations / "0004_fill.py").unlink()
    labeled.write("0001_squash", f"{LABEL}, {INDEX}, {FILL}", SQUASH)
    if applied_as == "the squash":
        labeled.succeed("migrate")
    if files == "gone":
        (labeled.migrations / "0002_label.py").unlink()
        (labeled.migrations / "0003_index.py").unlink()
    for name in ("0002_label", "0003_index", "0001_squash"):
        forget(scratch, name)
    before = sql(scratch, "SELECT count(*) FROM shop_label")
    out = labeled.succeed("migrate")
    assert "django_migrations has lost shop.0001_squash" in out
    assert sql(scratch, "SELECT count(*) FROM shop_label") == before
    assert recorded(scratch) >= {"0002_label", "0003_index", "0001_squash"}


@pytest.mark.parametrize("further", [True, False])
@pytest.mark.parametrize("gone", [["0002_label", "0001_squash"], ["0003_index", "0001_squash"], ["0002_label"]])
def test_rows_of_a_squash_are_recorded_again_though_some_of_it_are_there(labeled, scratch, gone, further):
    """Django takes such a squash out of its graph; the files that it replaces are gone."""
    (labeled.migrations / "0004_fill.py").unlink()
    forget(scratch, "0004%")
    labeled.write("0001_squash", f"{LABEL}, {INDEX}", SQUASH)
    labeled.succeed("migrate")
    (labeled.migrations / "0002_label.py").unlink()
    (labeled.migrations / "0003_index.py").unlink()
    if further:
        labeled.write("0005_color", 'migrations.AddField("label", "color", models.TextField(null=True))')
        labeled.succeed("migrate")
    before = recorded(scratch)
    for name in gone:
        forget(scratch, name)
    was = look(scratch)
    for command in ("showmigrations", "migrate --plan", "rollback --plan", "migrate shop zero --plan"):
        labeled.succeed(*command.split())
    assert "0001_squash" in labeled.succeed("rollback", "--steps", "2", "--plan")
    out = labeled.succeed("migrate")
    assert f"django_migrations has lost shop.{gone[0]}, which the applied shop.0001_squash replaces" in out
    assert recorded(scratch) == before
    assert look(scratch) == was
