"""Does a rollback take back what it should, refuse what it cannot, and lose nothing that nobody agreed to lose?"""

import re

import pytest
from django.core.management import CommandError, call_command
from django.db import migrations
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.models import Run, Step
from tests.databases import look

pytestmark = pytest.mark.once

TASKS = "20260210132000_create_tasks_table"
LAST = "20260210231000_drop_profile_columns_from_users"


@pytest.fixture
def batches(copied):
    """Two runs: the first up to the table of tasks, the second all the rest; and what the catalog was between."""
    first = f"tasks {TASKS}"
    return copied(first, ""), look(copied(first))


def rollback(database, capsys, **options):
    """Roll back as one who agrees that data may be lost: what Python does on the way back, nobody can tell."""
    call_command("rollback", database=database.alias, **{"yes": True, **options})
    return capsys.readouterr().out


def applied(database):
    return set(MigrationLoader(database).applied_migrations)


def test_the_last_batch_and_then_the_one_before(batches, capsys):
    database, between = batches
    rollback(database, capsys)
    assert look(database) == between
    assert ("tasks", TASKS) in applied(database)
    with pytest.raises(CommandError, match=r"nothing is left of the database .* Add --yes --all"):
        rollback(database, capsys)  # content types and permissions go, too
    rollback(database, capsys, all=True)
    assert {app for app, _ in applied(database)} == {"zero_downtime"}
    assert "Nothing to take back." in rollback(database, capsys)
    assert list(Run.objects.using(database.alias).order_by("pk").values_list("command", "status")) == [
        ("migrate", "succeeded"),
        ("migrate", "succeeded"),
        ("rollback", "succeeded"),
        ("rollback", "succeeded"),
    ]


def test_up_again_after_a_rollback(batches, capsys):
    database, _ = batches
    full = look(database)
    rollback(database, capsys)
    call_command("migrate", database=database.alias, verbosity=0)
    assert look(database) == full
    rollback(database, capsys)
    assert Step.objects.using(database.alias).filter(name=LAST).count() == 4


def test_one_run_by_its_number(batches, capsys):
    database, between = batches
    with pytest.raises(CommandError, match=r"cannot be taken back while .* which needs it, is applied"):
        rollback(database, capsys, run=1)
    rollback(database, capsys, run=2)
    assert look(database) == between
    with pytest.raises(CommandError, match="Nothing that run 2 applied is still applied"):
        rollback(database, capsys, run=2)
    with pytest.raises(CommandError, match="There is no run 77"):
        rollback(database, capsys, run=77)


def test_steps_and_timestamps(batches, capsys):
    database, _ = batches
    before = applied(database)
    rollback(database, capsys, steps=2)
    assert len(before - applied(database)) == 2
    rollback(database, capsys, to="20260210192000")
    assert max(name for _, name in applied(database) if re.match(r"2026021[0]", name)) == (
        "20260210192000_add_check_constraints_contributions"
    )
    with pytest.raises(CommandError, match="No migration has the timestamp 20260210192001"):
        rollback(database, capsys, to="20260210192001")
    with pytest.raises(CommandError, match=r"Cannot take back 999 steps: \d+ are applied"):
        rollback(database, capsys, steps=999)


def test_data_are_lost_only_if_somebody_says_yes(batches, capsys):
    database, between = batches
    full = look(database)
    with database.cursor() as cursor:
        cursor.execute("INSERT INTO users (username, email, password_hash) VALUES ('maria', 'maria@example.org', '!')")
        cursor.execute("INSERT INTO profiles (user_id, bio) SELECT id, 'carpenter' FROM users")
    assert "loses 1 row of profiles" in rollback(database, capsys, plan=True)
    with pytest.raises(CommandError, match="Data would be lost"):
        rollback(database, capsys, yes=False)
    assert look(database) == full
    rollback(database, capsys)
    assert look(database) == between


def test_what_has_no_reverse_is_refused_before_anything_is_touched(batches, capsys, monkeypatch):
    database, _ = batches
    full = look(database)
    copy = type(MigrationLoader(database).graph.nodes["accounts", "20260210212000_copy_users_into_profiles"])
    monkeypatch.setattr(copy, "operations", [migrations.RunPython(migrations.RunPython.noop)])
    with pytest.raises(CommandError, match=r"copy_users_into_profiles cannot be taken back: .* has no reverse"):
        rollback(database, capsys)
    assert look(database) == full
