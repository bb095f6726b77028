"""Do operations that see only an excerpt of the models do what they do with all of them?

The operations one by one are in test_schema; these are whole histories.
"""

from pathlib import Path

import pytest
from django.db import migrations, models
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ModelState, ProjectState

from gotong_royong.zero_downtime.running.executor import Executor
from gotong_royong.zero_downtime.running.states import Rolling
from tests.bench.synthetic import write_project
from tests.databases import look
from tests.test_migrations import GRAPH

pytestmark = pytest.mark.once

ID = models.BigAutoField(primary_key=True)


def statements(database, executor_class, targets=None):
    """Migrate from nothing and return what the database was told to change."""
    said = []

    def note(execute, sql, params, many, context):
        if not str(sql).lstrip().upper().startswith(("SELECT", "WITH")):
            said.append(str(sql))
        return execute(sql, params, many, context)

    executor = executor_class(database)
    executor.recorder.ensure_schema()
    with database.execute_wrapper(note):
        executor.migrate(targets or executor.loader.graph.leaf_nodes())
    return said


def test_the_projects_history(scratch, another):
    leaves = [leaf for leaf in GRAPH.leaf_nodes() if leaf[0] != "zero_downtime"]
    ours = statements(scratch, Executor, leaves)
    assert len(ours) > 100
    assert ours == statements(another, MigrationExecutor, leaves)


def test_a_generated_history(scratch, another, tmp_path, settings, monkeypatch):
    apps = write_project(Path(tmp_path), 100)
    monkeypatch.syspath_prepend(tmp_path)
    settings.INSTALLED_APPS = apps
    ours = statements(scratch, Executor)
    assert len(ours) > 100
    assert ours == statements(another, MigrationExecutor)


def library(*more):
    """A state with two models that know nothing of each other."""
    state = ProjectState()
    for name in ("Author", "Book"):
        state.add_model(ModelState("library", name, [("id", ID), *more]))
    return state


@pytest.mark.parametrize("halves", ["database_operations", "state_operations"])
def test_what_is_said_in_two_halves(scratch, halves):
    """The database's half may point to models that neither half of the state before does."""
    link = migrations.AddField("Book", "author", models.ForeignKey("library.Author", models.CASCADE, null=True))
    operation = migrations.SeparateDatabaseAndState(**{halves: [link]})
    rolling = Rolling(library())
    with scratch.schema_editor(collect_sql=True) as editor:
        before, after = rolling.step(operation, "library")
        operation.database_forwards("library", editor, before, after)
    assert bool(editor.collected_sql) == (halves == "database_operations")
    assert ("author" in rolling.state.models["library", "book"].fields) == (halves == "state_operations")
    next_one = migrations.AddIndex("Book", models.Index(fields=["id"], name="book_id"))
    _, after = rolling.step(next_one, "library")
    assert after.models.keys() == {("library", "book")} | (
        {("library", "author")} if halves == "state_operations" else set()
    )


def test_raw_sql_may_change_the_state():
    link = migrations.AddField("Book", "author", models.ForeignKey("library.Author", models.CASCADE, null=True))
    rolling = Rolling(library())
    rolling.step(migrations.RunSQL("SELECT 1", state_operations=[link]), "library")
    _, after = rolling.step(migrations.AddField("Book", "title", models.TextField(default="")), "library")
    assert after.apps.get_model("library", "Book")._meta.get_field("author").related_model.__name__ == "Author"


def test_python_sees_all_models_unless_it_does_nothing():
    rolling, seen = Rolling(library()), []

    def look(apps, editor):
        seen.extend(model.__name__ for model in apps.get_models())

    code = migrations.RunPython(look, migrations.RunPython.noop)
    code.code(rolling.step(code, "library")[0].apps, None)
    assert seen == ["Author", "Book"]
    noop = migrations.RunPython.noop
    before, _ = rolling.step(migrations.RunPython(noop, noop), "library")
    assert before.models == {}


def test_a_snapshot_does_not_roll_on():
    rolling = Rolling(library())
    link = migrations.AddField("Book", "author", models.ForeignKey("library.Author", models.CASCADE, null=True))
    rolling.step(link, "library")
    then = rolling.snapshot()
    rolling.step(migrations.RenameModel("Author", "Writer"), "library")
    rolling.step(migrations.AddField("Book", "title", models.TextField(default="")), "library")
    fields = {
        now: {
            field.name: field.related_model and field.related_model.__name__
            for field in state.excerpt({("library", "book")}).apps.get_model("library", "Book")._meta.fields
        }
        for now, state in (("then", then), ("now", rolling))
    }
    assert fields == {"then": {"id": None, "author": "Author"}, "now": {"id": None, "author": "Writer", "title": None}}


def test_a_migration_that_applies_itself_in_its_own_way_between_others(shop, scratch):
    """What it changes in the state, it changes behind the back of what rolls on."""
    own = (
        "def apply(self, project_state, schema_editor, collect_sql=False):\n"
        "        return super().apply(project_state, schema_editor, collect_sql)"
    )
    identity = '("id", models.BigAutoField(primary_key=True))'
    shop.write("0002_book", f'migrations.CreateModel("Book", [{identity}])')
    shop.write("0003_publisher", f'migrations.CreateModel("Publisher", [{identity}])', own)
    shop.write("0004_name", 'migrations.AddField("Publisher", "name", models.TextField(null=True))')
    shop.succeed("migrate")
    assert {"shop_book | id | bigint | True | None", "shop_publisher | name | text | False | None"} <= set(
        look(scratch)["columns"]
    )
