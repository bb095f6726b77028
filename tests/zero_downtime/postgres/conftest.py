"""May every statement of Django's schema editor run twice, and does it notice what is not what it wants?"""

from types import SimpleNamespace

import pytest
from django.db.migrations import Migration
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.postgres.editors import schema_editor_class
from tests.conftest import _database
from tests.databases import look
from tests.zero_downtime.postgres.cases import BASE, BASE_ROWS

# Set again rather than compared: it takes a lock that nobody who reads or writes rows waits for.
REPEATED = (
    "COMMENT ON",
    "UPDATE author SET town",
    'ALTER TABLE "author" VALIDATE',
    "ALTER SEQUENCE",
    'ALTER TABLE "author" ALTER COLUMN "born" SET DEFAULT',
    'ALTER TABLE "author" ALTER COLUMN "born" DROP DEFAULT',
)


@pytest.fixture(scope="module")
def server(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), _database() as database:
        database.SchemaEditorClass = schema_editor_class(database.SchemaEditorClass)
        yield database


@pytest.fixture(scope="module")
def base(server):
    """The state of the models of BASE, and the SQL that makes their tables with rows in them."""
    with schema_editor_class(type(server).SchemaEditorClass)(server, collect_sql=True) as editor:
        state = migration(BASE).apply(ProjectState(), editor)
    made = " ".join(editor.collected_sql)
    return state, f"DROP SCHEMA public CASCADE; CREATE SCHEMA public; {made} {BASE_ROWS}"


@pytest.fixture
def library(server, base):
    state, made = base
    sql(server, f"DROP SCHEMA IF EXISTS elsewhere CASCADE; {made}")
    return SimpleNamespace(database=server, state=state)


class Ended(Exception):
    pass


class Ending:
    """Ends a run after that many statements that change something."""

    def __init__(self, left):
        self.left = left

    def __call__(self, execute, statement, params, many, context):
        result = execute(statement, params, many, context)
        self.left -= not statement.lstrip().startswith("SELECT")
        if self.left == 0:
            raise Ended
        return result


def sql(database, statement, *values):
    with database.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else None


def migration(steps, *, atomic=False):
    made = Migration("0001_step", "library")
    made.operations, made.atomic = steps, atomic
    return made


def up(database, state, steps, *, atomic=False):
    with database.schema_editor(atomic=atomic) as editor:
        return migration(steps, atomic=atomic).apply(state.clone(), editor)


def down(database, state, steps, *, atomic=False):
    with database.schema_editor(atomic=atomic) as editor:
        migration(steps, atomic=atomic).unapply(state.clone(), editor)


def whole(database):
    """Everything that the catalog says of the tables, and that nothing temporary is left."""
    assert sql(database, "SELECT count(*) FROM pg_class WHERE relpersistence = 't'") == [(0,)]
    more = """
        SELECT attrelid::regclass::text, attname, attidentity, attgenerated, attcollation,
               col_description(attrelid, attnum)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND NOT attisdropped AND relkind = 'r'
        UNION ALL SELECT relname, NULL, NULL, NULL, NULL, obj_description(oid, 'pg_class')
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT collname, NULL, NULL, NULL, NULL, NULL
        FROM pg_collation WHERE collnamespace = 'public'::regnamespace
    """
    return {**look(database), "more": set(sql(database, more))}


def changes(database, action):
    """Which statements that change something the action executes, but for what happens to the stand-in."""
    executed = []

    def record(execute, statement, params, many, context):
        executed.append(" ".join(statement.split()))
        return execute(statement, params, many, context)

    with database.execute_wrapper(record):
        action()
    beside = ("SELECT", "SAVEPOINT", "ROLLBACK", "RELEASE", *REPEATED)
    return [
        text for text in executed if not text.startswith(beside) and "stand_in" not in text and "pg_temp" not in text
    ]


def is_concurrent(steps):
    return any("Concurrently" in type(step).__name__ for step in steps)


def skip_unless_supported(database, steps):
    if "nulls_distinct" in repr(steps) and not database.features.supports_nulls_distinct_unique_constraints:
        pytest.skip("PostgreSQL 15 has that")
