"""Does makemigrations write, rename and merge files as a project needs them, each under its time and its change?"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState
from django.test import override_settings

from gotong_royong.zero_downtime.authoring.autodetector import MigrationAutodetector
from gotong_royong.zero_downtime.management.commands.makemigrations import Command

pytestmark = pytest.mark.once

NOW = datetime(2026, 3, 1, 10, 20, 30, 500_000, tzinfo=UTC)
ENGINE = "gotong_royong.zero_downtime"

USERS = """
from django.db import models

class User(models.Model):
    username = models.CharField(max_length=50)

    class Meta:
        db_table = "users"
"""
USERS_WITH_BIO = USERS.replace("    class Meta", "    bio = models.TextField(null=True)\n\n    class Meta")
SKILLS = """
class Skill(models.Model):
    class Meta:
        db_table = "skills"
"""
EMPTY_MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [{dependencies}]
    replaces = [{replaces}]
"""


def at(monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    monkeypatch.setattr(MigrationAutodetector, "now", staticmethod(lambda: now))


class Project:
    """Apps on disk whose models change, and on which makemigrations really runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, app_label: str, source: str) -> None:
        migrations = self.folder / app_label / "migrations"
        migrations.mkdir(parents=True, exist_ok=True)
        for package in (migrations.parent, migrations):
            (package / "__init__.py").touch()
        (self.folder / app_label / "models.py").write_text(source)

    def write_migration(self, app_label: str, name: str, *, after: str = "", replaces: str = "") -> None:
        source = EMPTY_MIGRATION.format(
            dependencies=f"({app_label!r}, {after!r})" if after else "",
            replaces=f"({app_label!r}, {replaces!r})" if replaces else "",
        )
        (self.folder / app_label / "migrations" / f"{name}.py").write_text(source)

    def names(self, app_label: str) -> list[str]:
        return sorted(file.stem for file in (self.folder / app_label / "migrations").glob("[0-9]*.py"))

    def read(self, app_label: str, name: str) -> str:
        return (self.folder / app_label / "migrations" / f"{name}.py").read_text()

    def makemigrations(self, *args: str) -> str:
        return self.inside(lambda: self._makemigrations(*args))

    @staticmethod
    def _makemigrations(*args: str) -> str:
        output = StringIO()
        call_command(Command(stdout=output, stderr=StringIO()), *args, "--no-input")
        return output.getvalue()

    def load(self) -> MigrationLoader:
        return self.inside(lambda: MigrationLoader(None))

    def inside(self, work: Callable[[], Any]) -> Any:
        """Do the work in Django with these apps only, freshly imported, and forget them."""
        labels = sorted(folder.name for folder in self.folder.iterdir() if (folder / "models.py").exists())
        importlib.invalidate_caches()
        try:
            with override_settings(INSTALLED_APPS=[ENGINE, *labels]):
                return work()
        finally:
            for label in labels:
                apps.all_models.pop(label, None)
                for name in [name for name in sys.modules if name == label or name.startswith(f"{label}.")]:
                    del sys.modules[name]
            apps.clear_cache()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: None) -> Project:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of a file within one second
    monkeypatch.syspath_prepend(tmp_path)
    at(monkeypatch, NOW)
    return Project(tmp_path)


def assert_sorted_by_name_is_an_order_to_apply(loader: MigrationLoader) -> list[Migration]:
    """Return the migrations, sorted by name, if each comes after all those it depends on."""
    keys = sorted(loader.graph.nodes, key=lambda key: key[1])
    for position, key in enumerate(keys):
        assert {parent.key for parent in loader.graph.node_map[key].parents} <= set(keys[:position])
    return [loader.graph.nodes[key] for key in keys]


# The command, on files


def test_each_change_is_written_under_the_time_and_what_it_does(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("people", USERS)
    output = project.makemigrations()
    assert "20260301102030_create_users_table.py" in output

    at(monkeypatch, datetime(2026, 3, 2, tzinfo=UTC))
    project.write("people", USERS_WITH_BIO)
    project.makemigrations()

    assert project.names("people") == ["20260301102030_create_users_table", "20260302000000_add_bio_to_users"]
    assert "('people', '20260301102030_create_users_table')" in project.read(
        "people", "20260302000000_add_bio_to_users"
    )
    assert "initial = True" in project.read("people", "20260301102030_create_users_table")
    plan = assert_sorted_by_name_is_an_order_to_apply(project.load())
    assert len([migration for migration in plan if migration.app_label == "people"]) == 2
    assert "No changes detected" in project.makemigrations("--check")


def test_a_timestamp_in_the_future_is_followed_even_over_the_minute(project: Project) -> None:
    project.write("other", "")
    project.write_migration("other", "29991231125959_from_a_wrong_clock")
    project.write_migration("other", "29999931000000_no_valid_date", after="29991231125959_from_a_wrong_clock")
    project.write("people", USERS)
    project.makemigrations("people")
    assert project.names("people") == ["29991231130000_create_users_table"]


def test_files_hidden_behind_a_squashed_migration_count_too(project: Project) -> None:
    project.write("other", "")
    project.write_migration("other", "20300101000000_replaced")
    project.write_migration("other", "20200101000000_squashed", replaces="20300101000000_replaced")
    project.write("people", USERS)
    project.makemigrations("people")
    assert project.names("people") == ["20300101000001_create_users_table"]


def test_apps_that_need_each_other_are_written_in_an_order_that_really_applies(project: Project) -> None:
    project.write(
        "errands",
        """
from django.db import models

class Errand(models.Model):
    owner = models.ForeignKey("people.User", models.CASCADE)

    class Meta:
        db_table = "errands"
""",
    )
    project.write(
        "people",
        USERS.replace(
            "    class Meta",
            '    favorite = models.ForeignKey("errands.Errand", models.CASCADE, null=True)\n\n    class Meta',
        ),
    )
    project.makemigrations()

    assert project.names("errands") == ["20260301102030_create_errands_table", "20260301102032_add_owner_to_errands"]
    assert project.names("people") == ["20260301102031_create_users_table"]

    state = ProjectState()
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA scratch; SET LOCAL search_path TO scratch")
        for migration in assert_sorted_by_name_is_an_order_to_apply(project.load()):
            with connection.schema_editor() as editor:
                state = migration.apply(state, editor)
        cursor.execute("SELECT favorite_id, owner_id FROM scratch.users, scratch.errands")


def test_an_app_label_restricts_as_in_django(project: Project) -> None:
    project.write("people", USERS)
    project.write("places", USERS.replace("User", "Place").replace("users", "places"))
    project.makemigrations("places")
    assert project.names("people") == []
    assert [name[14:] for name in project.names("places")] == ["_create_places_table"]


def test_an_app_without_a_migrations_folder_gets_one_when_asked(project: Project) -> None:
    project.write("people", USERS)
    (project.folder / "people" / "migrations" / "__init__.py").unlink()
    (project.folder / "people" / "migrations").rmdir()
    assert "No changes detected" in project.makemigrations()
    project.makemigrations("people")
    assert project.names("people") == ["20260301102030_create_users_table"]


def test_a_name_replaces_the_description(project: Project) -> None:
    project.write("people", USERS)
    project.makemigrations("--name", "begin")
    project.makemigrations("people", "--empty", "--name", "populate_users")
    assert project.names("people") == ["20260301102030_begin", "20260301102031_populate_users"]


def test_empty_migrations_of_several_apps(project: Project) -> None:
    project.write("people", "")
    project.write("places", "")
    project.makemigrations("people", "places", "--empty")
    assert project.names("people") == ["20260301102030_custom"]
    assert project.names("places") == ["20260301102031_custom"]
    assert_sorted_by_name_is_an_order_to_apply(project.load())


@pytest.mark.parametrize("option", ["--dry-run", "--check"])
def test_dry_run_and_check_write_nothing(project: Project, option: str) -> None:
    project.write("people", USERS)
    if option == "--dry-run":
        assert "20260301102030_create_users_table.py" in project.makemigrations(option)
    else:
        with pytest.raises(SystemExit, match="1"):
            project.makemigrations(option)
    assert project.names("people") == []


def test_scriptable_prints_the_path_only(project: Project) -> None:
    project.write("people", USERS)
    assert project.makemigrations("--scriptable").split() == [
        str(project.folder / "people" / "migrations" / "20260301102030_create_users_table.py")
    ]


def test_update_renames_to_now_and_to_all_that_it_does(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write("people", USERS)
    project.makemigrations()
    project.write("people", USERS_WITH_BIO + SKILLS)
    at(monkeypatch, datetime(2026, 3, 2, tzinfo=UTC))
    output = project.makemigrations("--update")
    assert "Deleted" in output
    assert project.names("people") == ["20260302000000_create_skills_and_users_tables"]
    assert "No changes detected" in project.makemigrations("--check")


def test_update_in_the_same_second_with_a_name(project: Project) -> None:
    project.write("people", USERS)
    project.makemigrations()
    project.write("people", USERS_WITH_BIO)
    project.makemigrations("--update", "--name", "begin")
    assert project.names("people") == ["20260301102031_begin"]


def test_update_of_a_later_migration_keeps_its_dependency(project: Project) -> None:
    project.write("people", USERS)
    project.makemigrations()
    project.write("people", USERS_WITH_BIO)
    project.makemigrations()
    project.write("people", USERS_WITH_BIO.replace("bio =", "about =") + SKILLS)
    project.makemigrations("--update")
    assert project.names("people") == [
        "20260301102030_create_users_table",
        "20260301102032_create_skills_table_and_add_about_to_users",
    ]
    assert_sorted_by_name_is_an_order_to_apply(project.load())


@pytest.fixture
def forked(project: Project) -> Project:
    for app_label in ("people", "places"):
        project.write(app_label, "")
        project.write_migration(app_label, "20260101000000_begin")
        project.write_migration(app_label, "20260102125959_add_bio", after="20260101000000_begin")
        project.write_migration(app_label, "20260102115959_add_age", after="20260101000000_begin")
    return project


def test_a_conflict_is_reported_as_in_django(forked: Project) -> None:
    with pytest.raises(CommandError, match=r"multiple leaf nodes(.|\n)*makemigrations --merge"):
        forked.makemigrations()


def test_merges_of_several_apps(forked: Project) -> None:
    forked.makemigrations("--merge")
    assert forked.names("people")[3:] == ["20260301102030_merge_add_age_and_add_bio"]
    assert forked.names("places")[3:] == ["20260301102031_merge_add_age_and_add_bio"]
    assert_sorted_by_name_is_an_order_to_apply(forked.load())
    assert "No conflicts" in forked.makemigrations("--merge")


def test_a_merge_with_a_name_after_a_future_timestamp_of_another_app(forked: Project) -> None:
    forked.write("other", "")
    forked.write_migration("other", "20991231235959_far")
    forked.makemigrations("people", "--merge", "--name", "join")
    assert forked.names("people")[3:] == ["21000101000000_join"]


def test_a_merge_as_a_dry_run_writes_nothing(forked: Project) -> None:
    output = forked.makemigrations("people", "--merge", "--dry-run", "-v3")
    assert "20260301102030_merge_add_age_and_add_bio.py" in output
    assert len(forked.names("people")) == 3


def test_in_a_process_of_its_own_with_the_real_clock(project: Project) -> None:
    """One app after another, through a manage.py, with the engine installed by one line of settings."""
    project.write("people", USERS)
    database = {**connection.settings_dict, "TEST": {}}
    (project.folder / "manage.py").write_text(
        f"""
import json, os, sys
from django.conf import settings
from django.core.management import execute_from_command_line

settings.configure(
    INSTALLED_APPS=[{ENGINE!r}, "people"], DATABASES={{"default": json.loads(os.environ["TEST_DATABASE"])}}
)
execute_from_command_line(sys.argv)
"""
    )
    before = f"{datetime.now(UTC):%Y%m%d%H%M%S}"
    result = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "makemigrations"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEST_DATABASE": json.dumps(database, default=str)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (name,) = project.names("people")
    assert re.fullmatch(r"[0-9]{14}_create_users_table", name)
    assert before <= name[:14] <= f"{datetime.now(UTC):%Y%m%d%H%M%S}"
