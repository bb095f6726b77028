"""Does what other apps have added to Django's commands live on under ours, and is it said what does not?"""

import pytest

from gotong_royong.zero_downtime.models import Run

pytestmark = [pytest.mark.once, pytest.mark.newest]

ADDS = """
from django.core.management.base import CommandError
from django.core.management.commands import {command}

class Command({command}.Command):
    def add_arguments(self, parser):
        super().add_arguments(parser)
        parser.add_argument("--{app}", default="nobody")

    def handle(self, *args, **options):
        self.stdout.write("{app} greets " + options["{app}"])
        if options["{app}"] == "stranger":
            raise CommandError("{app} lets no stranger in.")
        super().handle(*args, **options)
"""
STRIPS = """
from django.core.management.commands import makemigrations

class Command(makemigrations.Command):
    def write_migration_files(self, changes):
        for migration in sum(changes.values(), []):
            for operation in migration.operations:
                getattr(operation, "field", operation).help_text = ""
        super().write_migration_files(changes)
"""
MODEL = """
class Item(models.Model):
    {}
    class Meta:
        db_table = "items"
"""
PK = "id = models.IntegerField(primary_key=True)\n"
BIO = PK + "    bio = models.TextField(null=True, help_text='About it.')\n"
CREATED = """migrations.CreateModel("Item", [
    ("id", models.IntegerField(primary_key=True, serialize=False)),
], {"db_table": "items"})"""
ON_OURS = """
from gotong_royong.zero_downtime.management.commands import migrate

class Command(migrate.Command):
    def handle(self, *args, **options):
        self.stdout.write("{app} is first")
        super().handle(*args, **options)
"""


@pytest.fixture
def bring(shop):
    """Let apps bring commands."""

    def bring(app, command, text):
        folder = shop.folder / app / "management" / "commands"
        folder.mkdir(parents=True, exist_ok=True)
        (shop.folder / app / "__init__.py").touch()
        (folder / f"{command}.py").write_text(text.format(app=app, command=command) if "{app}" in text else text)

    return bring


def order(shop, *apps):
    ours = ["gotong_royong.zero_downtime" if app == "ours" else app for app in apps]
    shop.settings(f"INSTALLED_APPS = {ours}\n")


def complaints(shop):
    """Return the ids that check says, and all that it says."""
    said = shop.run("check").err
    assert "Traceback" not in said, said
    return [word.strip("():") for word in said.split() if word.startswith("(zero_downtime.")], said


@pytest.mark.parametrize("command", ["migrate", "makemigrations", "showmigrations"])
def test_an_app_behind_ours_adds_an_option_and_a_line_and_may_refuse(shop, bring, command):
    bring("hall", command, ADDS)
    order(shop, "ours", "hall", "shop")
    assert complaints(shop)[0] == []
    said = shop.succeed(command, "--hall", "you")
    assert said.startswith("hall greets you\n")
    assert "hall lets no stranger in." in shop.fail(command, "--hall", "stranger")


def test_a_run_is_guarded_all_the_same(shop, bring, scratch):
    bring("hall", "migrate", ADDS)
    order(shop, "ours", "hall", "shop")
    said = shop.succeed("migrate", "--pre-deploy")
    assert "hall greets nobody" in said
    assert Run.objects.using(scratch.alias).get().command == "migrate"
    assert "hall greets nobody\nPlanned operations:\n" in shop.succeed("migrate", "--plan")


def test_one_behind_the_next_is_that_ones_business(shop, bring):
    for app in ("hall", "porch"):
        bring(app, "migrate", ADDS)
    order(shop, "ours", "hall", "porch", "shop")
    assert "porch" not in shop.succeed("migrate")
    chained = ADDS.replace("django.core.management.commands", "porch.management.commands")
    bring("hall", "migrate", chained)
    assert "hall greets nobody\nporch greets you\n" in shop.succeed("migrate", "--porch", "you")
    assert complaints(shop)[0] == []


def test_one_made_on_ours_stands_in_front_and_ours_on_the_next(shop, bring, scratch):
    bring("hall", "migrate", ADDS)
    bring("porch", "migrate", ON_OURS)
    for apps in (["porch", "ours", "hall", "shop"], ["porch", "hall", "ours", "shop"]):
        order(shop, *apps)
        assert "porch is first\nhall greets you\n" in shop.succeed("migrate", "--hall", "you")
        assert complaints(shop)[0] == []
    assert Run.objects.using(scratch.alias).exists()


def test_one_made_on_ours_that_stands_behind_is_used(shop, bring):
    bring("porch", "migrate", ON_OURS)
    order(shop, "ours", "porch", "shop")
    assert "porch is first" in shop.succeed("migrate")
    assert complaints(shop)[0] == []


def test_what_another_takes_out_of_migrations_stays_out(shop, bring):
    bring("hall", "makemigrations", STRIPS)
    order(shop, "ours", "hall", "shop")
    shop.write("0001_items", CREATED)
    shop.models(MODEL.format(BIO))
    shop.succeed("makemigrations")
    (path,) = shop.migrations.glob("*_add_bio_to_items.py")
    assert "About it" not in path.read_text()


def test_the_linter_of_another_package_lints_what_is_made(shop):
    order(shop, "ours", "django_migration_linter", "shop")
    shop.write("0001_items", CREATED)
    shop.models(MODEL.format(PK + "    size = models.IntegerField(default=1)\n"))
    shop.succeed("migrate")
    said = shop.run("makemigrations", "--lint", "--noinput")
    assert "Linting for 'shop'" in said.out + said.err


def test_an_app_ahead_of_ours_keeps_ours_away_and_that_is_said(shop, bring):
    bring("hall", "migrate", ADDS)
    bring("hall", "rollback", ADDS.replace("import {command}", "import flush as {command}"))
    order(shop, "hall", "ours", "shop")
    ids, said = complaints(shop)
    assert ids == ["zero_downtime.W001"] * 2
    assert "manage.py migrate is the command of hall, so the command of gotong_royong.zero_downtime is not used" in said
    assert "Put 'gotong_royong.zero_downtime' before 'hall' in INSTALLED_APPS; then both work." in said
    assert "in INSTALLED_APPS; then the command of hall is not used." in said


WHOLE = """
from django.core.management.base import BaseCommand

class Command(BaseCommand):
    def handle(self, *args, **options):
        self.stdout.write("hall does it all")
"""


@pytest.mark.parametrize("command", ["migrate", "lintmigrations"])
def test_what_cannot_be_kept_is_said(shop, bring, command):
    bring("hall", command, WHOLE)
    order(shop, "ours", "hall", "shop")
    ids, said = complaints(shop)
    assert ids == ["zero_downtime.W002"]
    assert "hall" in said
    assert command in said
    assert "INSTALLED_APPS" in said
    assert "hall does it all" not in shop.succeed(command)


STAGED = """
from django.core.management.commands import migrate

class Command(migrate.Command):
    def add_arguments(self, parser):
        super().add_arguments(parser)
        parser.add_argument("--pre-deploy", "--early", action="store_true", dest="early")
        parser.add_argument("--backup", default="of theirs", dest="kept")

    def handle(self, *args, early, kept, **options):
        self.stdout.write(f"{early} {kept}")
        super().handle(*args, **options)
"""


def test_an_option_that_both_bring_is_ours_and_that_is_said(shop, bring):
    bring("hall", "migrate", STAGED)
    order(shop, "ours", "hall", "shop")
    ids, said = complaints(shop)
    assert ids == ["zero_downtime.W003"] * 2
    assert "--backup of migrate" in said
    assert shop.succeed("migrate", "--pre-deploy").startswith("False of theirs\n")
    assert shop.succeed("migrate", "--early").startswith("True of theirs\n")


TOLD = """
from django.core.management.commands import migrate

class Command(migrate.Command):
    def migration_progress_callback(self, action, migration=None, fake=False):
        if getattr(migration, "app_label", "shop") == "shop":
            self.stderr.write(f"{action} {migration} {fake}")
        super().migration_progress_callback(action, migration, fake)
"""


def test_progress_is_told_as_django_tells_it_and_printed_once(shop, bring):
    bring("hall", "migrate", TOLD)
    order(shop, "ours", "hall", "shop")
    done = shop.run("migrate")
    assert done.err == "apply_start shop.0001_items False\napply_success shop.0001_items False\n"
    assert done.out.count("Applying shop.0001_items... OK\n") == 1
    done = shop.run("migrate", "shop", "zero")
    assert done.err.splitlines()[-2:] == [
        "unapply_start shop.0001_items False",
        "unapply_success shop.0001_items False",
    ]
    assert done.out.count("Unapplying shop.0001_items... OK\n") == 1
    assert "apply_success shop.0001_items True\n" in shop.run("migrate", "--fake").err


WARNED = """
import warnings
from django.core.management import call_command

def call():
    with warnings.catch_warnings(record=True) as said:
        call_command("makemigrations", "--check", "--dry-run")
    print("heard", *(each.category.__name__ for each in said))
"""


def test_who_calls_makemigrations_from_python_hears_its_warnings(shop, bring):
    bring(
        "hall",
        "ask",
        f"{WARNED}\nfrom django.core.management.base import BaseCommand\n"
        "class Command(BaseCommand):\n    def handle(self, *args, **options):\n        call()\n",
    )
    shop.settings("INSTALLED_APPS += ['hall']\nDATABASES['default'] |= {'HOST': '127.0.0.1', 'PORT': 1}\n")
    assert "heard RuntimeWarning\n" in shop.succeed("ask")
