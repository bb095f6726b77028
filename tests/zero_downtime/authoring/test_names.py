"""Which names do new migrations get: a time in an order that can be applied, and words for the change?"""

import itertools
import re
from datetime import UTC, datetime

import pytest
from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.operations import AddIndexConcurrently, CreateExtension
from django.db import models
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.operations.base import Operation
from django.db.migrations.questioner import MigrationQuestioner
from django.db.migrations.state import ModelState, ProjectState
from django.test import override_settings

from gotong_royong.zero_downtime.authoring.autodetector import (
    LONGEST_DESCRIPTION,
    MigrationAutodetector,
    describe,
    describe_merge,
    timestamps,
)
from tests.zero_downtime.authoring.test_autodetector import NOW

pytestmark = pytest.mark.once

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
