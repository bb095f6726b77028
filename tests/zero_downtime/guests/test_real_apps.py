"""Does Python in a migration find every installed app, also those without migrations?"""

import pytest

pytestmark = pytest.mark.once

PLAIN = """
from django.db import models

class Color(models.Model):
    name = models.CharField(max_length=10)
"""
COUNTS = """
from django.db import migrations

def count(apps, schema_editor):
    Color = apps.get_model("plain", "Color")
    print("colors:", Color.objects.using(schema_editor.connection.alias).count())
    print("apps:", *sorted(config.label for config in apps.get_app_configs()))

class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = [("shop", "0001_items")]
    operations = [migrations.RunPython(count, count)]
"""


@pytest.fixture
def with_plain(shop):
    """A shop and an app without migrations, to which no model of the shop points."""
    shop.app("plain", models=PLAIN)
    return shop


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("model", ["", 'migrations.CreateModel("Item", [("id", models.AutoField(primary_key=True))])'])
def test_python_finds_an_app_without_migrations(with_plain, atomic, model):
    with_plain.write("0001_items", model)
    (with_plain.migrations / "0002_count.py").write_text(COUNTS.format(atomic=atomic))
    said = with_plain.succeed("migrate", "--run-syncdb")
    assert "colors: 0" in said
    found = "apps: plain shop zero_downtime" if model else "apps: plain zero_downtime"
    assert found in said
    assert "colors: 0" in with_plain.succeed("rollback", "--steps", "1", "--yes")
