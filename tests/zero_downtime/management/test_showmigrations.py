"""Does showmigrations tell what the ledger remembers, and nothing where it remembers nothing?"""

import importlib
import re
import sys
import uuid

import pytest
from django.core.management import call_command
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.models import Step
from gotong_royong.zero_downtime.running import history, recall

pytestmark = [pytest.mark.once, pytest.mark.newest]

FILE = """
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {dependencies}
    replaces = {replaces}
    operations = [migrations.RunSQL("SELECT 1", "SELECT 1")]
"""
KNOWN = r"run (\d+) +\d{4}-\d\d-\d\d \d\d:\d\d UTC +(\d+\.\d\d s  blocked \d+\.\d\d s|faked)"


class Package:
    """The migrations of the app sessions, in a folder that a test may write."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "__init__.py").touch()

    def write(self, name, *parents, replaces=()):
        text = FILE.format(dependencies=[("sessions", name) for name in parents], replaces=list(replaces))
        (self.folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    def edit(self, name):
        with (self.folder / f"{name}.py").open("a") as file:
            file.write("# another line")

    def remove(self, name):
        (self.folder / f"{name}.py").unlink()
        importlib.invalidate_caches()


@pytest.fixture
def package(tmp_path, monkeypatch, settings):
    name = f"trial_{uuid.uuid4().hex}"
    monkeypatch.syspath_prepend(tmp_path)
    settings.MIGRATION_MODULES = {"sessions": name}
    made = Package(tmp_path / name)
    made.write("first")
    made.write("second", "first")
    yield made
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def migrate(database, *target, **options):
    call_command("migrate", "sessions", *target, database=database.alias, verbosity=0, **options)


def edited(database):
    loader = MigrationLoader(database)
    return recall.edited(loader, history.remembered(database.alias, loader))


@pytest.fixture
def show(scratch, capsys):
    def shown(*apps, **options):
        capsys.readouterr()
        call_command("showmigrations", *(apps or ["sessions"]), database=scratch.alias, **options)
        return capsys.readouterr().out.splitlines()

    return shown


def test_what_is_applied_says_when_in_which_run_and_how_it_went(scratch, package, show):
    migrate(scratch, "first")
    migrate(scratch)
    package.write("third", "second")
    with scratch.cursor() as cursor:
        cursor.execute(
            "UPDATE zero_downtime_step SET longest_blocked = 12.345, started_at = '2026-11-22 20:15:00+00', "
            "finished_at = '2026-11-22 20:16:05.25+00' WHERE name = 'second'"
        )
    heading, first, second, third = show()
    assert heading == "sessions"
    assert re.fullmatch(rf" \[X\] first +{KNOWN}", first).group(1) == "1"
    assert second == " [X] second   run 2  2026-11-22 20:15 UTC    65.25 s  blocked 12.35 s"
    assert third == " [ ] third"
    assert first.index("run") == second.index("run")
    assert first.index("blocked") == second.index("blocked")


def test_the_plan_and_verbosity_2_say_it_too(scratch, package, show):
    migrate(scratch, "first")
    assert re.fullmatch(rf"\[X\]  sessions\.first +{KNOWN}", show(format="plan")[0])
    assert show(format="plan")[1] == "[ ]  sessions.second"
    assert re.fullmatch(rf" \[X\] first \(applied at [-0-9: ]+\) +{KNOWN}", show(verbosity=2)[1])
    assert show(format="plan", verbosity=2)[1] == "[ ]  sessions.second ... (sessions.first)"


def test_other_apps_as_django_shows_them(scratch, package, show):
    assert show("messages", "sessions") == ["messages", " (no migrations)", "sessions", " [ ] first", " [ ] second"]
    assert "accounts" in show("accounts", "auth")
    with pytest.raises(SystemExit, match="2"):
        show("session")


def test_a_faked_step_says_so(scratch, package, show):
    migrate(scratch, fake=True)
    assert re.fullmatch(rf" \[X\] first +{KNOWN}", show()[1]).group(2) == "faked"


def test_an_edited_file_is_marked_and_explained(scratch, package, show):
    migrate(scratch)
    assert "edited" not in " ".join(show())
    package.edit("first")
    _, first, second, empty, explained = show()
    assert first.endswith("edited since")
    assert "edited" not in second
    assert empty == ""
    assert explained.startswith("Edited since they were applied here: sessions.first. ")
    assert "makemigrations" in explained
    assert show("auth")[-1].startswith(" [ ] ")
    assert edited(scratch) == [MigrationLoader(scratch).graph.nodes["sessions", "first"]]


def test_many_edited_files_are_counted(scratch, package):
    warning = recall.warning([f"sessions.m{number}" for number in range(8)])
    assert "sessions.m4 and 3 more. " in warning
    assert "sessions.m5" not in warning


def test_a_file_that_is_gone_is_not_an_edited_one(scratch, package, show):
    migrate(scratch)
    package.remove("second")
    assert [line.split("  ")[0] for line in show()] == ["sessions", " [X] first"]
    assert edited(scratch) == []


def test_what_was_squashed(scratch, package, show):
    """The new file is applied because those are that it replaces; no run has applied it, so no run is named."""
    migrate(scratch)
    package.write("both", replaces=[("sessions", "first"), ("sessions", "second")])
    assert show()[1] == " [-] both (2 squashed migrations) Run 'manage.py migrate' to finish recording."
    migrate(scratch)
    assert show() == ["sessions", " [X] both (2 squashed migrations)"]
    migrate(scratch, "zero")
    migrate(scratch)
    assert re.fullmatch(rf" \[X\] both \(2 squashed migrations\) +{KNOWN}", show()[1])


def test_half_of_what_was_squashed(scratch, package, show):
    migrate(scratch, "first")
    package.write("both", replaces=[("sessions", "first"), ("sessions", "second")])
    _, first, second = show()
    assert re.fullmatch(rf" \[X\] first +{KNOWN}", first)
    assert second == " [ ] second"


def test_a_step_that_was_taken_back_is_not_the_one_that_applied_it(scratch, package, show):
    migrate(scratch)
    migrate(scratch, "first")
    assert show()[2] == " [ ] second"
    scratch.cursor().execute("INSERT INTO django_migrations (app, name, applied) VALUES ('sessions', 'second', now())")
    assert show()[2] == " [X] second"
    assert Step.objects.using(scratch.alias).filter(name="second").count() == 2


def test_without_a_ledger(scratch, package, show):
    migrate(scratch)
    with scratch.cursor() as cursor:
        cursor.execute("DROP TABLE zero_downtime_effect, zero_downtime_step")
    assert show() == ["sessions", " [X] first", " [X] second"]
    assert edited(scratch) == []


def test_a_ledger_that_may_not_be_read(scratch, package, show):
    migrate(scratch)
    reader = f"reader_{uuid.uuid4().hex[:12]}"
    with scratch.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {reader}; GRANT SELECT ON django_migrations TO {reader}; SET ROLE {reader}")
    try:
        *shown, empty, told = show()
    finally:
        with scratch.cursor() as cursor:
            cursor.execute(f"RESET ROLE; DROP OWNED BY {reader}; DROP ROLE {reader}")
    assert [*shown, empty] == ["sessions", " [X] first", " [X] second", ""]
    tables = "public.zero_downtime_run, public.zero_downtime_step, public.zero_downtime_effect"
    assert told == (
        f"This role may not read the ledger: it lacks SELECT on {tables}. "
        f"Use the role that owns them, or GRANT SELECT ON {tables} TO {reader}."
    )


def test_another_vendors_database(package, django_db_blocker, capsys, tmp_path):
    connections.databases["lite"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": tmp_path / "lite.sqlite3",  # one in memory is not closed
        "OPTIONS": {},
    }
    try:
        with django_db_blocker.unblock():
            call_command("showmigrations", "sessions", database="lite")
        assert capsys.readouterr().out == "sessions\n [ ] first\n [ ] second\n"
    finally:
        connections["lite"].close()
        del connections["lite"], connections.databases["lite"]
