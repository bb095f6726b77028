"""Which migrations are judged, and what runs before them?"""

import importlib.util
import subprocess

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations import Migration
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError
from gotong_royong.zero_downtime.linter import selection

pytestmark = pytest.mark.once

LAST = ("accounts", "20260210231000_drop_profile_columns_from_users")
FIRST = ("accounts", "20260210120000_create_users_table")


@pytest.fixture(scope="module")
def loader():
    return MigrationLoader(None)


def test_what_is_judged_comes_after_all_that_it_needs_and_nothing_else_runs(loader):
    chosen = selection.select(loader, [("tasks", "20260210132000_create_tasks_table")])
    assert chosen.plan == (("tasks", "20260210132000_create_tasks_table"),)
    assert FIRST in chosen.ground
    assert not {app for app, _ in chosen.ground} & {"contributions", "admin", "sessions"}
    seen = set()
    for key in [*chosen.ground, *chosen.plan]:
        assert {parent.key for parent in loader.graph.node_map[key].parents} <= seen
        seen.add(key)


def test_what_depends_on_the_judged_and_is_needed_runs_in_its_place(loader):
    chosen = selection.select(loader, [FIRST, LAST])
    assert chosen.plan[0] == FIRST
    assert chosen.plan[-1] == LAST
    assert all(app not in {"accounts", "tasks"} for app, _ in chosen.ground)


def test_the_project_s_own_are_after_the_baseline_and_not_the_engine_s(loader, settings):
    assert {app for app, _ in selection.own(loader)} == {"accounts", "tasks", "contributions"}
    settings.ZERO_DOWNTIME_LINT_AFTER = {"accounts": "20260210230000"}
    assert [key for key in selection.own(loader) if key[0] == "accounts"] == [LAST]
    settings.ZERO_DOWNTIME_LINT_AFTER = {"account": "20260210230000"}
    with pytest.raises(ZeroDowntimeError, match=r"^In ZERO_DOWNTIME_LINT_AFTER: .* Did you mean accounts\?"):
        selection.own(loader)


@pytest.mark.parametrize(
    ("app", "name", "message"),
    [
        ("task", "", r"No installed app with label 'task'. Did you mean tasks\?"),
        ("postgres", "", "App 'postgres' has no migrations"),
        ("accounts", "20260210120000_create_user_table", r"Did you mean 20260210120000_create_users_table\?"),
        ("accounts", "2026", "More than one migration of accounts begins with '2026'"),
        ("accounts", "1999", "No migration of accounts begins with '1999'"),
    ],
)
def test_a_name_that_is_none(loader, app, name, message):
    with pytest.raises(CommandError, match=message):
        selection.named(loader, app, name)


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], check=True)  # noqa: S607


def test_changed_since_a_revision(tmp_path, monkeypatch):
    folder = tmp_path / "project" / "shop" / "migrations"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    loader = MigrationLoader(None, load=False)
    loader.graph = MigrationGraph()
    for name in ("kept", "edited", "added", "untracked"):
        file = folder / f"{name}.py"
        file.write_text("from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n    pass\n")
        spec = importlib.util.spec_from_file_location(f"shop_migrations_{name}", file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, spec.name, module)
        spec.loader.exec_module(module)
        loader.graph.add_node(("shop", name), module.Migration(name, "shop"))
    git("init", "--quiet", "--initial-branch=main")
    git("add", str(folder / "kept.py"), str(folder / "edited.py"))
    git("commit", "--quiet", "--message=one")
    git("checkout", "--quiet", "-b", "branch")
    git("add", str(folder / "added.py"))
    git("commit", "--quiet", "--message=two")
    (folder / "edited.py").write_text("# edited")
    monkeypatch.chdir(tmp_path / "project")
    assert selection.changed_since(loader, "main") == [("shop", name) for name in ("edited", "added", "untracked")]
    with pytest.raises(ZeroDowntimeError, match="Is the revision there"):
        selection.changed_since(loader, "no-such-branch")


def test_a_migration_without_a_file_has_no_part_in_the_name_of_the_ground():
    loader = MigrationLoader(None)
    chosen = selection.select(loader, [LAST])
    (app, name), *others = chosen.ground
    loader.graph.nodes[app, name] = type("Migration", (Migration,), {"__module__": "without_a_file"})(name, app)
    without = chosen._replace(ground=tuple(others))
    assert chosen.template(loader, connection) == without.template(loader, connection)


def test_unapplied_is_what_the_database_has_not(loader, scratch):
    call_command("migrate", "contenttypes", database=scratch.alias, verbosity=0)
    found = selection.unapplied(loader, MigrationRecorder(scratch).applied_migrations())
    assert FIRST in found
    assert ("contenttypes", "0001_initial") not in found
