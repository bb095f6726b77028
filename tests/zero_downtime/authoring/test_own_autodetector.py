"""Do our commands find what a project's own autodetector finds, and keep our names?"""

import pytest

from tests.zero_downtime.test_implied_stages import THING

pytestmark = pytest.mark.once

PACKAGE = """
from django.apps import AppConfig
from django.core.management.commands import makemigrations, migrate
from django.db.migrations import RunSQL

class Finds:
    def _detect_changes(self, *args, **kwargs):
        changes = super()._detect_changes(*args, **kwargs)
        for migration in changes.get("shop", []):
            migration.operations.append(RunSQL("SELECT 42", RunSQL.noop))
        return changes

class Config(AppConfig):
    name = "package"

    def ready(self):
        detector = type("Detector", (Finds, migrate.Command.autodetector), {})
        makemigrations.Command.autodetector = migrate.Command.autodetector = detector
"""
OWN_COMMAND = """
from gotong_royong.zero_downtime.management.commands import {0}
from package.apps import Detector

class Command({0}.Command):
    autodetector = Detector
"""
MODEL = """
class Thing(models.Model):
    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=10, null=True)
    size = models.IntegerField(null=True)
    code = models.IntegerField(null=True, db_column="kode")
"""


@pytest.fixture
def packaged(shop):
    """A shop with a package that sets autodetectors on Django's commands as it is started."""
    shop.app("package", apps=PACKAGE)
    shop.write("0001_items", THING)
    shop.models(MODEL + "    bio = models.TextField(null=True)\n")
    return shop


def made(shop):
    (path,) = set(shop.migrations.glob("*.py")) - {shop.migrations / "__init__.py", shop.migrations / "0001_items.py"}
    return path.name[15:], path.read_text()


def test_what_a_package_has_set_on_the_commands_is_asked(packaged):
    packaged.succeed("makemigrations")
    name, text = made(packaged)
    assert name.startswith("add_bio_to_shop_thing_and_")
    assert "SELECT 42" in text
    packaged.succeed("migrate")
    packaged.succeed("makemigrations", "--check")


def test_what_a_command_of_the_project_sets_is_asked(packaged):
    folder = packaged.folder / "shop" / "management" / "commands"
    folder.mkdir(parents=True)
    for command in ("makemigrations", "migrate"):
        (folder / f"{command}.py").write_text(OWN_COMMAND.format(command))
    without_ready = PACKAGE[: PACKAGE.index("    def ready")]
    (packaged.folder / "package" / "apps.py").write_text(
        f"{without_ready}\nclass Detector(Finds, migrate.Command.autodetector):\n    pass\n"
    )
    packaged.settings("INSTALLED_APPS = ['shop', 'package', 'gotong_royong.zero_downtime']\n")
    packaged.succeed("makemigrations")
    name, text = made(packaged)
    assert name.startswith("add_bio_to_shop_thing_and_")
    assert "SELECT 42" in text


def test_two_leaves_are_merged_by_it_too(packaged):
    packaged.models(MODEL)
    for name in ("0002_one", "0002_two"):
        packaged.write("0002_one", "")
        (packaged.migrations / "0002_one.py").rename(packaged.migrations / f"{name}.py.new")
    for path in packaged.migrations.glob("*.new"):
        path.rename(path.with_suffix(""))
    assert "merge_one_and_two" in packaged.succeed("makemigrations", "--merge", "--noinput")
