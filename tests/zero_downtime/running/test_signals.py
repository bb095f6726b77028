"""Do the receivers of Django's signals hear of every way back, as they hear of ``migrate app name``?"""

import pytest

from tests.databases import look

pytestmark = pytest.mark.once

THING = 'migrations.CreateModel("Thing", [("id", models.AutoField(primary_key=True))])'
RENAME = 'migrations.RenameModel("Thing", "Item")'
COLUMN = 'migrations.AddField("item", "size", models.IntegerField(null=True))'
FAILS = 'migrations.RunSQL("SELECT 1 / 0", "")'
RECEIVER = """
from django.db.models.signals import post_migrate, pre_migrate

def say(app_config, using, plan, apps, signal, **how):
    if app_config.label == "shop":
        name = "pre" if signal is pre_migrate else "post"
        models = sorted(model._meta.model_name for model in apps.get_models() if model._meta.app_label == "shop")
        steps = [f"{migration.name} {backwards}" for migration, backwards in plan]
        print(name, using, steps, models, sorted(how))

pre_migrate.connect(say)
post_migrate.connect(say)
"""


@pytest.fixture
def things(shop):
    """A shop with one model, which has its content type."""
    shop.settings("INSTALLED_APPS.insert(1, 'django.contrib.contenttypes')\n")
    shop.models(RECEIVER)
    shop.write("0001_items", THING)
    shop.succeed("migrate")
    return shop


def content_types(database):
    with database.cursor() as cursor:
        cursor.execute("SELECT id, model FROM django_content_type WHERE app_label = 'shop'")
        return cursor.fetchall()


def heard(out):
    return [line for line in out.splitlines() if line.startswith(("pre ", "post "))]


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_the_content_type_of_a_renamed_model_comes_back(things, scratch, attributes):
    before, catalog = content_types(scratch), look(scratch)
    things.write("0002_rename", f"{RENAME}, {COLUMN}", attributes)
    things.succeed("migrate")
    assert content_types(scratch) == [(before[0][0], "item")]
    things.succeed("rollback", "--yes")
    assert (content_types(scratch), look(scratch)) == (before, catalog)


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_it_comes_back_by_an_automatic_rollback_too(things, scratch, attributes):
    before, catalog = content_types(scratch), look(scratch)
    things.write("0002_rename", f"{RENAME}, {COLUMN}", attributes)
    things.write("0003_fails", FAILS)
    said = things.fail("migrate", "--auto-rollback")
    assert "Rolled back: shop.0002_rename" in said
    assert (content_types(scratch), look(scratch)) == (before, catalog)
    things.write("0002_rename", f"{RENAME}, {COLUMN}, {FAILS}", attributes)
    things.fail("migrate", "--auto-rollback")
    assert (content_types(scratch), look(scratch)) == (before, catalog)


def test_receivers_are_told_what_migrate_tells_them(things):
    things.write("0002_rename", f"{RENAME}, {COLUMN}")
    things.succeed("migrate")
    stock = heard(things.succeed("migrate", "shop", "0001"))
    assert [line.split()[0] for line in stock] == ["pre", "post"]
    things.succeed("migrate")
    assert heard(things.succeed("rollback", "--yes")) == stock
