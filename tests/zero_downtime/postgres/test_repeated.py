"""Does a step that is repeated say what it skips, fail where something else is there, and ask no more than it needs?"""

import logging
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.db import ProgrammingError, models
from django.db.migrations import operations
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.exceptions import DefinitionDiffers
from gotong_royong.zero_downtime.postgres.editors import schema_editor_class
from gotong_royong.zero_downtime.running.states import Rolling
from tests.test_constraints import ROWS
from tests.test_migrations import GRAPH, steps_up
from tests.zero_downtime.postgres.cases import CASES, INDEX
from tests.zero_downtime.postgres.conftest import changes, down, migration, sql, up, whole


class TestReadAgain:
    """PostgreSQL writes some expressions differently once it has read its own words, as when a backup is restored."""

    HERE = models.Q(name__in=["Solo", "Jogja"])
    STEPS = [
        operations.AddConstraint("Author", models.CheckConstraint(condition=HERE, name="c")),
        operations.AddIndex("Author", models.Index(fields=["born"], condition=HERE, name="idx")),
        operations.AddField(
            "Author",
            "here",
            models.GeneratedField(
                expression=models.Case(models.When(HERE, then=1), default=0),
                output_field=models.IntegerField(),
                db_persist=True,
            ),
        ),
    ]
    WORDS = """
        SELECT pg_get_constraintdef(c.oid), pg_get_indexdef('idx'::regclass), pg_get_expr(adbin, adrelid)
        FROM pg_constraint c JOIN pg_attribute ON attrelid = conrelid
        JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE conname = 'c' AND attgenerated <> ''
    """

    @pytest.fixture
    def words(self, library):
        """What was made, which is there no more, in PostgreSQL's words."""
        sql(library.database, "TRUNCATE author CASCADE")
        up(library.database, library.state, self.STEPS)
        ((check, index, expression),) = sql(library.database, self.WORDS)
        down(library.database, library.state, self.STEPS)
        return SimpleNamespace(check=check, index=index, expression=expression)

    def make(self, database, words):
        sql(
            database,
            f"ALTER TABLE author ADD CONSTRAINT c {words.check}; {words.index};"
            f"ALTER TABLE author ADD here integer GENERATED ALWAYS AS ({words.expression}) STORED",
        )

    def test_it_is_the_same(self, library, words):
        self.make(library.database, words)
        assert sql(library.database, self.WORDS) != [tuple(vars(words).values())]
        assert changes(library.database, lambda: up(library.database, library.state, self.STEPS)) == []

    @pytest.mark.parametrize("part", ["check", "index", "expression"])
    def test_other_values_differ(self, library, words, part):
        setattr(words, part, getattr(words, part).replace("Solo", "Semarang"))
        self.make(library.database, words)
        with pytest.raises(DefinitionDiffers):
            up(library.database, library.state, self.STEPS)


def test_what_is_skipped_is_said(library, caplog):
    caplog.set_level(logging.INFO, "gotong_royong.zero_downtime.postgres.schema")
    up(library.database, library.state, [operations.AddIndex("Author", INDEX)])
    assert not caplog.messages
    up(library.database, library.state, [operations.AddIndex("Author", INDEX)])
    assert caplog.messages == ["skipped: index idx on author is already there"]


def test_an_error_shows_both_definitions_and_where(library):
    sql(library.database, "CREATE INDEX idx ON author (name)")
    with pytest.raises(DefinitionDiffers, match="idx on author") as raised:
        up(library.database, library.state, [operations.AddIndex("Author", INDEX)])
    assert raised.value.found == "idx INDEX USING btree (name)"
    assert raised.value.wanted == "idx INDEX USING btree (born)"


def test_what_is_missing_is_an_error_of_postgresql(library):
    sql(library.database, "ALTER TABLE author DROP born")
    for step in (
        operations.AlterField("Author", "born", models.BigIntegerField()),
        operations.RenameField("Author", "born", "birth"),
        operations.AddIndex("Author", INDEX),
    ):
        with pytest.raises(ProgrammingError, match=r'column "born" .*does not exist'):
            up(library.database, library.state, [step], atomic=True)
        assert not library.database.in_atomic_block


def test_sqlmigrate_prints_what_django_prints_and_asks_no_more(library):
    def collect(editor_class, steps):
        asked = []

        def record(execute, statement, params, many, context):
            asked.append(statement)
            return execute(statement, params, many, context)

        with library.database.execute_wrapper(record), editor_class(library.database, True, False) as editor:
            migration(steps).apply(library.state.clone(), editor, collect_sql=True)
        return editor.collected_sql, asked

    ours = library.database.SchemaEditorClass
    for steps, _ in CASES.values():
        assert collect(ours, steps) == collect(ours.__bases__[1], steps)


@pytest.mark.parametrize("steps", [case[0] for case in CASES.values()], ids=CASES)
def test_excerpts_of_the_states_are_all_that_operations_need(library, steps):
    """What they say with those few models is what they say with all of them, up and down."""

    def collect(say):
        with library.database.schema_editor(collect_sql=True, atomic=False) as editor:
            say(editor)
        return [statement for statement in editor.collected_sql if not statement.startswith("--")]

    def excerpts(editor):
        for operation, before, after in moves:
            operation.database_forwards("library", editor, before, after)

    def excerpts_back(editor):
        for operation, before, after in reversed(moves):
            operation.database_backwards("library", editor, after, before)

    moves = Rolling(ProjectState(library.state.clone().models)).moves(steps, "library")
    assert collect(excerpts) == collect(lambda editor: migration(steps).apply(library.state.clone(), editor, True))
    up(library.database, library.state, steps)
    assert collect(excerpts_back) == collect(
        lambda editor: migration(steps).unapply(library.state.clone(), editor, True)
    )


def test_an_editor_derived_from_postgresqls_stays_what_it_is(library):
    base = type(library.database).SchemaEditorClass
    special = type("Special", (base,), {"sql_create_index": base.sql_create_index + "/* special */"})
    library.database.SchemaEditorClass, before = schema_editor_class(special), library.database.SchemaEditorClass
    steps = [operations.AddIndex("Author", INDEX)]
    try:
        (statement,) = changes(library.database, lambda: up(library.database, library.state, steps))
        assert statement.endswith("/* special */")
        assert changes(library.database, lambda: up(library.database, library.state, steps)) == []
    finally:
        library.database.SchemaEditorClass = before


class TestHistory:
    """Every migration of every installed app, ours and Django's."""

    @pytest.fixture
    def ours(self, scratch):
        scratch.SchemaEditorClass = schema_editor_class(scratch.SchemaEditorClass)
        MigrationExecutor(scratch).recorder.ensure_schema()
        return scratch

    def test_each_may_run_again_right_after_itself_up_and_down(self, ours):
        state, states = ProjectState(real_apps=MigrationExecutor(ours).loader.unmigrated_apps), []
        for key in steps_up():
            step = GRAPH.nodes[key]
            seen = []
            for _ in range(2):
                with ours.schema_editor(atomic=step.atomic) as editor:
                    after = step.apply(state.clone(), editor)
                seen.append(whole(ours))
            assert seen[0] == seen[1], key
            states.append((key, state))
            state = after
        sql(ours, ROWS)
        for key, before in reversed(states):
            step = GRAPH.nodes[key]
            seen = []
            for _ in range(2):
                with ours.schema_editor(atomic=step.atomic) as editor:
                    step.unapply(before.clone(), editor)
                seen.append(whole(ours))
            assert seen[0] == seen[1], key

    def test_it_makes_what_django_makes(self, scratch, request):
        call_command("migrate", database=scratch.alias, verbosity=0)
        stock = whole(scratch)
        sql(scratch, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        call_command("migrate", database=request.getfixturevalue("ours").alias, verbosity=0)
        assert whole(scratch) == stock
