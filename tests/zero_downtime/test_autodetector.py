"""Names of new migrations: a timestamp in an order that can be applied, a description said by the change."""

import importlib
import itertools
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
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.operations import AddIndexConcurrently, CreateExtension
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.questioner import MigrationQuestioner
from django.db.migrations.state import ModelState, ProjectState
from django.test import override_settings

from gotong_royong.zero_downtime.autodetector import (
    LONGEST_DESCRIPTION,
    MigrationAutodetector,
    describe,
    describe_merge,
    timestamps,
)
from gotong_royong.zero_downtime.management.commands.makemigrations import Command

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
    assert len(assert_sorted_by_name_is_an_order_to_apply(project.load())) == 5  # and the three of the ledger
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


# The order, from states


def names(before: list[ModelState], after: list[ModelState]) -> list[tuple[str, str]]:
    """Return app label and name of the migrations between the models, sorted by name: dependencies come first."""
    states = [ProjectState({(model.app_label, model.name_lower): model for model in side}) for side in (before, after)]
    graph = MigrationGraph()
    for app_label in {model.app_label for model in before}:
        graph.add_node((app_label, "0001_initial"), None)
    detector = MigrationAutodetector(*states, MigrationQuestioner({"ask_initial": True}))
    changes = detector.changes(graph)
    new = sorted((migration for migrations in changes.values() for migration in migrations), key=lambda new: new.name)
    known = {*graph.nodes, ("__setting__", "AUTH_USER_MODEL")}
    for migration in new:
        assert set(migration.dependencies) <= known
        known.add((migration.app_label, migration.name))
    return [(migration.app_label, migration.name) for migration in new]


def model(app_label: str, name: str, *fields: tuple[str, models.Field], **options: object) -> ModelState:
    return ModelState(app_label, name, [("id", models.BigAutoField(primary_key=True)), *fields], options)


def test_a_swappable_model_of_a_new_app_comes_first() -> None:
    with override_settings(AUTH_USER_MODEL="people.Member"):
        new = names(
            [],
            [
                model("errands", "Errand", ("owner", models.ForeignKey("people.Member", models.CASCADE))),
                model("people", "Member", swappable="AUTH_USER_MODEL"),
            ],
        )
    assert [(app_label, name[14:]) for app_label, name in new] == [
        ("people", "_create_people_member_table"),
        ("errands", "_create_errands_errand_table"),
    ]


def test_a_swappable_model_of_an_old_app_needs_no_new_migration_first() -> None:
    """The app's own change depends on the new app, which depends on the old user: no circle."""
    with override_settings(AUTH_USER_MODEL="people.Member"):
        member = model("people", "Member", swappable="AUTH_USER_MODEL")
        errand = model("errands", "Errand", ("owner", models.ForeignKey("people.Member", models.CASCADE)))
        favorite = ("favorite", models.ForeignKey("errands.Errand", models.CASCADE, null=True))
        new = names([member], [errand, model("people", "Member", favorite, swappable="AUTH_USER_MODEL")])
    assert [(app_label, name[14:]) for app_label, name in new] == [
        ("errands", "_create_errands_errand_table"),
        ("people", "_add_favorite_to_people_member"),
    ]


def test_many_apps_in_a_chain_against_the_alphabet() -> None:
    labels = [f"app{letter}" for letter in "abcdef"]
    chain = [
        model(label, "Thing", ("next", models.ForeignKey(f"{later}.Thing", models.CASCADE)))
        for label, later in itertools.pairwise(labels)
    ]
    new = names([], [*chain, model(labels[-1], "Thing")])
    assert [app_label for app_label, _ in new] == labels[::-1]
    assert len({name[:14] for _, name in new}) == len(labels)


def test_a_deleted_model_with_indexes_and_constraints_is_described() -> None:
    """The detection has taken them out of the old state by then."""
    options = {
        "db_table": "skills",
        "indexes": [models.Index(fields=["id"], name="idx_skills_id")],
        "constraints": [models.CheckConstraint(condition=models.Q(id__gt=0), name="check_id")],
        "unique_together": {("id", "level")},
    }
    ((_, name),) = names([model("people", "Skill", ("level", models.IntegerField()), **options)], [])
    assert name[14:] == "_delete_skills_table"


# The timestamps


@pytest.mark.parametrize(
    ("existing", "following"),
    [
        ([], "20260301102030"),
        (["20260301102030_now"], "20260301102031"),
        (["20260301102029_before"], "20260301102030"),
        (["20260301105959_minute"], "20260301110000"),
        (["20261231235959_year"], "20270101000000"),
        (["20280228235959_leap_day"], "20280229000000"),
        (["0001_initial", "9999_big", "20261301000000_month", "20270229000000_day", "20270101000060_second"], None),
        (["2027010100000_thirteen_digits", "notes_20270101000000", "99991231235959_the_last"], None),
        (["20250101000000_squashed_20270101000000_bio"], "20270101000001"),
    ],
)
def test_timestamps_are_valid_and_later_than_all(existing: list[str], following: str | None) -> None:
    graph = MigrationGraph()
    for number, name in enumerate(existing):
        graph.add_node((f"app{number}", name), None)
    stamps = timestamps(graph, NOW)
    first, second = next(stamps), next(stamps)
    assert first == (following or "20260301102030")
    assert datetime.strptime(first, "%Y%m%d%H%M%S") < datetime.strptime(second, "%Y%m%d%H%M%S")


def test_the_clock_is_in_utc() -> None:
    assert abs((MigrationAutodetector.now() - datetime.now(UTC)).total_seconds()) < 5
    assert MigrationAutodetector.now().tzinfo is UTC


# The descriptions


def populate_levels(apps: object, schema_editor: object) -> None: ...


class Compact(Operation):
    """An operation that nobody has told of; it says nothing of itself."""

    def state_forwards(self, app_label: str, state: ProjectState) -> None: ...


CHECK = models.CheckConstraint(condition=~models.Q(voucher=models.F("vouchee")), name="check_not_self_vouch")
UNIQUE = models.UniqueConstraint(fields=["voucher", "vouchee"], name="unique_vouch")
EXCLUSION = ExclusionConstraint(name="no_overlap", expressions=[("voucher", "=")])
INDEX = models.Index(fields=["voucher"], name="idx_vouches_voucher")
TEXT = models.TextField()


def create(name: str, **options: object) -> ops.CreateModel:
    return ops.CreateModel(name, [("id", models.BigAutoField(primary_key=True))], options)


DESCRIPTIONS: list[tuple[str, list[Operation]]] = [
    ("custom", []),
    ("create_skills_table", [create("Skill", db_table="skills")]),
    ("create_people_skill_table", [create("Skill")]),
    (
        "create_skills_and_task_skills_tables",
        [create("Skill", db_table="skills"), create("TaskSkill", db_table="task_skills")],
    ),
    ("create_audit_log_table", [create("Log", db_table='"Audit"."Log"')]),
    ("create_cafe_table", [create("Cafe", db_table="Café")]),
    ("moderator", [create("Moderator", proxy=True)]),
    ("report", [create("Report", managed=False)]),
    ("report_total", [create("Report", managed=False), ops.AddField("report", "total", TEXT)][1:]),
    (
        "create_skills_table",
        [
            create("Skill", db_table="skills"),
            ops.AddField("Skill", "level", TEXT),
            ops.AddConstraint("Skill", CHECK),
        ],
    ),
    ("delete_users_table", [ops.DeleteModel("User")]),
    ("delete_vouches_table", [ops.RemoveIndex("Vouch", "idx_vouches_vouchee"), ops.DeleteModel("Vouch")]),
    ("delete_vouches_and_users_tables", [ops.DeleteModel("Vouch"), ops.DeleteModel("User")]),
    ("rename_model_user_to_member", [ops.RenameModel("User", "Member")]),
    ("rename_table_people_note_to_people_remark", [ops.RenameModel("Note", "Remark")]),
    ("rename_table_users_to_members", [ops.AlterModelTable("User", "members")]),
    (
        "rename_model_user_to_member_and_add_bio_to_users",
        [ops.RenameModel("User", "Member"), ops.AddField("Member", "bio", TEXT)],
    ),
    (
        "rename_table_users_to_members_and_add_bio_to_members",
        [ops.AlterModelTable("User", "members"), ops.AddField("User", "bio", TEXT)],
    ),
    ("alter_table_comment_on_users", [ops.AlterModelTableComment("User", "People")]),
    ("alter_unique_together_on_vouches", [ops.AlterUniqueTogether("Vouch", {("voucher", "vouchee")})]),
    ("alter_index_together_on_vouches", [ops.AlterIndexTogether("Vouch", {("voucher", "vouchee")})]),
    ("alter_order_with_respect_to_on_vouches", [ops.AlterOrderWithRespectTo("Vouch", "voucher")]),
    ("alter_options_on_users", [ops.AlterModelOptions("User", {"verbose_name": "member"})]),
    ("alter_managers_on_users", [ops.AlterModelManagers("User", [("objects", models.Manager())])]),
    ("add_bio_to_users", [ops.AddField("User", "bio", TEXT)]),
    (
        "add_bio_and_location_to_users",
        [ops.AddField("User", "bio", TEXT), ops.AddField("User", "location", TEXT)],
    ),
    (
        "add_bio_to_users_and_add_bio_to_vouches",
        [ops.AddField("User", "bio", TEXT), ops.AddField("Vouch", "bio", TEXT)],
    ),
    ("remove_about_from_users", [ops.RemoveField("User", "about")]),
    ("alter_about_on_users", [ops.AlterField("User", "about", models.CharField(max_length=9))]),
    ("rename_about_to_bio_on_users", [ops.RenameField("User", "about", "bio")]),
    ("add_index_vouches_voucher", [ops.AddIndex("Vouch", INDEX)]),
    ("add_index_vouches_voucher", [AddIndexConcurrently("Vouch", INDEX)]),
    (
        "add_indexes_vouches_voucher_and_vouches_3f2a",
        [ops.AddIndex("Vouch", INDEX), ops.AddIndex("Vouch", models.Index(fields=["id"], name="vouches_3f2a_idx"))],
    ),
    ("remove_index_vouches_vouchee", [ops.RemoveIndex("Vouch", "idx_vouches_vouchee")]),
    (
        "rename_index_vouches_vouchee_to_vouches_to",
        [ops.RenameIndex("Vouch", new_name="idx_vouches_to", old_name="idx_vouches_vouchee")],
    ),
    (
        "rename_index_voucher_vouchee_to_vouches_both",
        [ops.RenameIndex("Vouch", new_name="idx_vouches_both", old_fields=("voucher", "vouchee"))],
    ),
    ("add_check_constraint_vouches", [ops.AddConstraint("Vouch", CHECK)]),
    ("add_unique_constraint_vouches", [ops.AddConstraint("Vouch", UNIQUE)]),
    ("add_exclusion_constraint_vouches", [ops.AddConstraint("Vouch", EXCLUSION)]),
    (
        "add_check_constraints_vouches_and_users",
        [ops.AddConstraint("Vouch", CHECK), ops.AddConstraint("User", CHECK)],
    ),
    ("add_check_constraints_vouches", [ops.AddConstraint("Vouch", CHECK), ops.AddConstraint("Vouch", CHECK)]),
    ("remove_constraint_old_check", [ops.RemoveConstraint("Vouch", "old_check")]),
    ("alter_constraint_old_check", [ops.AlterConstraint("Vouch", "old_check", CHECK)]),
    ("run_sql", [ops.RunSQL("SELECT 1")]),
    ("run_sql", [ops.RunSQL("SELECT 1"), ops.RunSQL("SELECT 2")]),
    ("add_index_vouches_voucher", [ops.RunSQL("CREATE INDEX …", state_operations=[ops.AddIndex("Vouch", INDEX)])]),
    ("populate_levels", [ops.RunPython(populate_levels)]),
    ("lambda", [ops.RunPython(lambda apps, schema_editor: None)]),
    ("create_extension_citext", [CreateExtension("citext")]),
    ("compact", [Compact()]),
    ("separate_database_and_state", [ops.SeparateDatabaseAndState()]),
    (
        "add_bio_to_users",
        [ops.SeparateDatabaseAndState([ops.RunSQL("ALTER …")], [ops.AddField("User", "bio", TEXT)])],
    ),
    ("remove_about_from_users", [ops.SeparateDatabaseAndState([ops.RemoveField("User", "about")])]),
    (
        "remove_about_from_users",
        [
            ops.SeparateDatabaseAndState([ops.RemoveField("User", "about")]),
            ops.SeparateDatabaseAndState([], [ops.RemoveField("User", "about")]),
        ],
    ),
    (
        "add_bio_to_users_and_add_index_vouches_voucher",
        [ops.AddField("User", "bio", TEXT), ops.AddIndex("Vouch", INDEX)],
    ),
    (
        "create_audit_entries_and_audit_event_types_and_5_more_tables",
        [create("E", db_table="audit_entries"), create("T", db_table="audit_event_types")]
        + [create(f"M{number}", db_table=f"table_{number}") for number in range(5)],
    ),
    (
        "create_skills_table_and_add_bio_to_users_and_2_more",
        [
            create("Skill", db_table="skills"),
            ops.AddField("User", "bio", TEXT),
            ops.AddIndex("Vouch", INDEX),
            ops.AddConstraint("Vouch", CHECK),
        ],
    ),
    ("add_" + "b" * (LONGEST_DESCRIPTION - 4), [ops.AddField("User", "b" * 63, TEXT)]),
]


@pytest.mark.parametrize(("description", "operations"), DESCRIPTIONS, ids=[name for name, _ in DESCRIPTIONS])
def test_a_description_says_the_change(description: str, operations: list[Operation]) -> None:
    before = ProjectState()
    vouch_options = {
        "db_table": "vouches",
        "indexes": [models.Index(fields=["vouchee"], name="idx_vouches_vouchee")],
        "constraints": [models.CheckConstraint(condition=models.Q(id__gt=0), name="old_check")],
        "index_together": {("voucher", "vouchee")},
    }
    person = ("voucher", models.ForeignKey("people.User", models.CASCADE, related_name="+"))
    other = ("vouchee", models.ForeignKey("people.User", models.CASCADE, related_name="+"))
    for old in (
        model("people", "User", ("about", models.TextField()), db_table="users", constraints=[]),
        model("people", "Vouch", person, other, **vouch_options),
        model("people", "Note"),
        model("people", "Report", managed=False),
    ):
        before.add_model(old)
    migration = Migration("auto_1", "people")
    migration.operations = operations
    said = describe(migration, before)
    assert said == description
    assert re.fullmatch(r"[a-z0-9_]+", said)
    assert len(said) <= LONGEST_DESCRIPTION


def test_every_operation_of_django_is_tried() -> None:
    tried = {type(operation) for _, operations in DESCRIPTIONS for operation in operations}
    assert {getattr(ops, name) for name in ops.__all__} <= tried


@pytest.mark.parametrize(
    ("leaves", "description"),
    [
        (["20260101000000_add_bio", "20260102000000_add_age"], "merge_add_bio_and_add_age"),
        (["0002_add_bio", "0002_add_bio"], "merge_add_bio"),
        (["0001_squashed_20260102000000_add_bio", "0003_x"], "merge_squashed_add_bio_and_x"),
        (["20260101000000", "20260102000000"], "merge"),
        ([f"2026010100000{number}_{'long' * 6}_{number}" for number in range(4)], f"merge_{'long' * 6}_0_and_3_more"),
    ],
)
def test_a_merge_says_what_it_joins(leaves: list[str], description: str) -> None:
    assert describe_merge(leaves) == description
