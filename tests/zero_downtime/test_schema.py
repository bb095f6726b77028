"""May every statement of Django's schema editor run twice, and does it notice what is not what it wants?"""

import itertools
import logging
from contextlib import suppress
from types import SimpleNamespace

import pytest
from django.contrib.postgres import operations as postgres
from django.contrib.postgres.constraints import ExclusionConstraint
from django.core.management import call_command
from django.db import IntegrityError, ProgrammingError, models
from django.db.migrations import Migration, operations
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ProjectState
from django.db.models.functions import Lower, Now

from gotong_royong.zero_downtime.exceptions import DefinitionDiffers
from gotong_royong.zero_downtime.schema import schema_editor_class
from gotong_royong.zero_downtime.states import Rolling
from tests.conftest import _database
from tests.test_constraints import ROWS
from tests.test_migrations import GRAPH, look, steps_up


def create(name, *fields, **options):
    return operations.CreateModel(name, [("id", models.BigAutoField(primary_key=True)), *fields], options=options)


def foreign_key(to, **options):
    return models.ForeignKey(to, models.CASCADE, **options)


BASE = [
    create(
        "Author", ("name", models.CharField(max_length=50)), ("born", models.IntegerField(null=True)), db_table="author"
    ),
    create(
        "Book",
        ("title", models.CharField(max_length=50, db_index=True)),
        ("blurb", models.TextField(null=True)),
        ("editor", foreign_key("library.Author", null=True, related_name="edited")),
        ("pages", models.IntegerField(default=1)),
        ("note", models.TextField(null=True)),
        ("author", foreign_key("library.Author")),
        ("isbn", models.CharField(max_length=13, null=True, unique=True)),
        ("shelf", models.PositiveIntegerField(null=True, db_default=3)),
        db_table="book",
        indexes=[models.Index(fields=["pages"], name="book_pages")],
        constraints=[
            models.CheckConstraint(condition=models.Q(pages__gte=0), name="book_has_pages"),
            models.UniqueConstraint(fields=["title", "pages"], name="book_unique"),
            models.UniqueConstraint(Lower("note"), name="book_note_unique"),
        ],
        unique_together={("title", "shelf")},
    ),
    create("Shop", ("name", models.TextField()), ("books", models.ManyToManyField("library.Book"))),
]
BASE_ROWS = """
    INSERT INTO author (name, born) VALUES ('Pramoedya', 1), ('Chairil', NULL);
    INSERT INTO book (title, pages, note, author_id, isbn) VALUES ('Bumi Manusia', 535, 'one', 1, '9789799731234');
    INSERT INTO library_shop (name) VALUES ('Solo');
    INSERT INTO library_shop_books (shop_id, book_id) VALUES (1, 1);
"""

# Each: operations that make one migration, and SQL that puts something else in their way, if that can be.
CASES = {
    "create a model": (
        [
            create(
                "Loan",
                ("book", foreign_key("library.Book")),
                ("days", models.PositiveSmallIntegerField(db_default=14)),
                ("since", models.DateTimeField(db_default=Now())),
                ("code", models.SlugField(unique=True)),
                (
                    "twice",
                    models.GeneratedField(
                        expression=models.F("days") * 2, output_field=models.IntegerField(), db_persist=True
                    ),
                ),
                ("readers", models.ManyToManyField("library.Author")),
                db_table="loan",
                db_table_comment="what is lent",
                constraints=[
                    models.CheckConstraint(condition=models.Q(days__lt=100), name="loan_short"),
                    models.UniqueConstraint(fields=["book"], condition=models.Q(days=1), name="loan_partial"),
                    models.UniqueConstraint(
                        fields=["code", "days"], name="loan_unique", deferrable=models.Deferrable.DEFERRED
                    ),
                ],
                indexes=[models.Index(fields=["-days"], name="loan_days")],
                unique_together={("book", "days")},
            )
        ],
        "CREATE TABLE loan (id bigint PRIMARY KEY, days integer)",
    ),
    "delete a model": ([operations.DeleteModel("Shop")], None),
    "rename a model": ([operations.RenameModel("Shop", "Store")], "CREATE TABLE library_store (id bigint)"),
    "rename a table": (
        [operations.AlterModelTable("Author", "writer")],
        "CREATE TABLE writer (id bigint)",
    ),
    "rename a table with a many-to-many": (
        [operations.AlterModelTable("Shop", "store")],
        "CREATE TABLE store (id bigint)",
    ),
    "comment a table": ([operations.AlterModelTableComment("Author", "Who 'writes'")], None),
    "order with respect to": ([operations.AlterOrderWithRespectTo("Book", "author")], None),
    "add a column": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, null=True))],
        "ALTER TABLE author ADD town varchar(21)",
    ),
    "add a column with a default": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, default="100% Solo"))],
        "ALTER TABLE author ADD town varchar(20)",
    ),
    "add a column with a default of the database": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, db_default="100% Solo"))],
        "ALTER TABLE author ADD town varchar(20) NOT NULL DEFAULT 'Jogja'",
    ),
    "add a unique, indexed, commented column": (
        [operations.AddField("Author", "slug", models.SlugField(unique=True, null=True, db_comment="Who?"))],
        "ALTER TABLE author ADD slug varchar(50)",
    ),
    "add an indexed column": (
        [operations.AddField("Author", "town", models.TextField(null=True, db_index=True))],
        "ALTER TABLE author ADD town text; CREATE INDEX \"author_town_d1c041b9\" ON author (town) WHERE town > ''",
    ),
    "add a checked column": (
        [operations.AddField("Author", "age", models.PositiveIntegerField(default=0))],
        "ALTER TABLE author ADD age integer NOT NULL DEFAULT 2 CHECK (age > 1)",
    ),
    "add a collated column": (
        [operations.AddField("Author", "town", models.CharField(max_length=9, null=True, db_collation="C"))],
        "ALTER TABLE author ADD town varchar(9)",
    ),
    "add a generated column": (
        [
            operations.AddField(
                "Author",
                "decade",
                models.GeneratedField(
                    expression=models.F("born") / 10, output_field=models.IntegerField(), db_persist=True
                ),
            )
        ],
        "ALTER TABLE author ADD decade integer GENERATED ALWAYS AS (born / 11) STORED",
    ),
    "add a foreign key": (
        [operations.AddField("Shop", "owner", foreign_key("library.Author", null=True))],
        "ALTER TABLE library_shop ADD owner_id bigint REFERENCES book",
    ),
    "add a many-to-many": ([operations.AddField("Author", "friends", models.ManyToManyField("library.Author"))], None),
    "remove a column": ([operations.RemoveField("Book", "blurb")], None),
    "remove a foreign key": ([operations.RemoveField("Book", "editor")], None),
    "remove a many-to-many": ([operations.RemoveField("Shop", "books")], None),
    "rename a column": (
        [operations.RenameField("Author", "born", "birth")],
        "ALTER TABLE author ADD birth integer",
    ),
    "rename a foreign key": (
        [operations.RenameField("Book", "author", "writer")],
        "ALTER TABLE book ADD writer_id integer",
    ),
    "alter a type": ([operations.AlterField("Book", "pages", models.BigIntegerField(default=1))], None),
    "alter a type that has a pattern index": (
        [operations.AlterField("Book", "isbn", models.TextField(null=True, unique=True))],
        None,
    ),
    "alter the type of a primary key": (
        [operations.AlterField("Author", "id", models.AutoField(primary_key=True))],
        None,
    ),
    "alter to no identity": ([operations.AlterField("Shop", "id", models.BigIntegerField(primary_key=True))], None),
    "alter to not null": ([operations.AlterField("Author", "born", models.IntegerField(default=1900))], None),
    "alter to not null with a default of the database": (
        [operations.AlterField("Author", "born", models.IntegerField(db_default=1900))],
        None,
    ),
    "alter to null": ([operations.AlterField("Author", "name", models.CharField(max_length=50, null=True))], None),
    "alter a default of the database": (
        [operations.AlterField("Book", "shelf", models.PositiveIntegerField(null=True, db_default=4))],
        None,
    ),
    "alter to unique": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, unique=True))],
        None,
    ),
    "alter to not unique": ([operations.AlterField("Book", "isbn", models.CharField(max_length=13, null=True))], None),
    "alter to indexed": (
        [operations.AlterField("Author", "born", models.IntegerField(null=True, db_index=True))],
        None,
    ),
    "alter to not indexed": ([operations.AlterField("Book", "title", models.CharField(max_length=50))], None),
    "alter to checked": ([operations.AlterField("Book", "pages", models.PositiveIntegerField(default=1))], None),
    "alter a collation": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, db_collation="C"))],
        None,
    ),
    "alter a comment": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, db_comment="Who?"))],
        None,
    ),
    "alter a foreign key to null": (
        [operations.AlterField("Book", "author", foreign_key("library.Author", null=True))],
        None,
    ),
    "alter a foreign key to none in the database": (
        [operations.AlterField("Book", "author", foreign_key("library.Author", db_constraint=False))],
        None,
    ),
    "alter a foreign key's target": ([operations.AlterField("Book", "author", foreign_key("library.Shop"))], None),
    "alter to a foreign key": (
        [operations.AlterField("Author", "born", foreign_key("library.Shop", null=True, db_column="born"))],
        None,
    ),
    "add an index": (
        [operations.AddIndex("Author", models.Index("born", models.F("name").desc(), name="idx"))],
        "CREATE INDEX idx ON author (born)",
    ),
    "add an index whose name another table's has": (
        [operations.AddIndex("Author", models.Index(fields=["born"], name="idx"))],
        "CREATE INDEX idx ON book (pages)",
    ),
    "add a partial index": (
        [operations.AddIndex("Author", models.Index(fields=["born"], condition=models.Q(name="%"), name="idx"))],
        "CREATE INDEX idx ON author (born) WHERE name = 'x'",
    ),
    "add a covering index": (
        [operations.AddIndex("Author", models.Index(fields=["born"], include=["name"], name="idx"))],
        "CREATE INDEX idx ON author (born, name)",
    ),
    "add an index with a class of operators": (
        [operations.AddIndex("Author", models.Index(fields=["name"], opclasses=["varchar_pattern_ops"], name="idx"))],
        "CREATE INDEX idx ON author (name)",
    ),
    "remove an index": ([operations.RemoveIndex("Book", "book_pages")], None),
    "rename an index": (
        [operations.RenameIndex("Book", new_name="idx", old_name="book_pages")],
        "CREATE INDEX idx ON book (pages)",
    ),
    "add an index concurrently": (
        [postgres.AddIndexConcurrently("Author", models.Index(fields=["born"], name="idx"))],
        "CREATE INDEX idx ON author (name)",
    ),
    "remove an index concurrently": ([postgres.RemoveIndexConcurrently("Book", "book_pages")], None),
    "add a check": (
        [
            operations.AddConstraint(
                "Author", models.CheckConstraint(condition=models.Q(born__gt=0) & ~models.Q(name="%"), name="c")
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c CHECK (born > -1)",
    ),
    "add a check that is not valid": (
        [postgres.AddConstraintNotValid("Author", models.CheckConstraint(condition=models.Q(born__gt=0), name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c CHECK (born > -1)",
    ),
    "add and validate a check": (
        [
            postgres.AddConstraintNotValid("Author", models.CheckConstraint(condition=models.Q(born__gt=0), name="c")),
            postgres.ValidateConstraint("Author", "c"),
        ],
        None,
    ),
    "add a unique constraint": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["name"], name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (born)",
    ),
    "add a deferrable unique constraint": (
        [
            operations.AddConstraint(
                "Author", models.UniqueConstraint(fields=["name"], deferrable=models.Deferrable.DEFERRED, name="c")
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (name)",
    ),
    "add a partial unique constraint": (
        [
            operations.AddConstraint(
                "Author", models.UniqueConstraint(fields=["name"], condition=models.Q(born=1), name="c")
            )
        ],
        "CREATE UNIQUE INDEX c ON author (name) WHERE born = 2",
    ),
    "add a unique constraint of expressions": (
        [operations.AddConstraint("Author", models.UniqueConstraint(Lower("name"), name="c"))],
        "CREATE INDEX c ON author (lower(name))",
    ),
    "add a covering unique constraint": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["name"], include=["born"], name="c"))],
        "CREATE UNIQUE INDEX c ON author (name)",
    ),
    "add a unique constraint of nulls": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["born"], nulls_distinct=False, name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (born)",
    ),
    "add an exclusion": (
        [
            operations.AddConstraint(
                "Author",
                ExclusionConstraint(name="c", expressions=[(models.Func("born", "born", function="int4range"), "&&")]),
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c EXCLUDE USING gist (int4range(born, born) WITH -|-)",
    ),
    "remove a check": ([operations.RemoveConstraint("Book", "book_has_pages")], None),
    "remove a unique constraint": ([operations.RemoveConstraint("Book", "book_unique")], None),
    "remove a unique constraint of expressions": ([operations.RemoveConstraint("Book", "book_note_unique")], None),
    "add a unique_together": (
        [operations.AlterUniqueTogether("Author", {("name", "born")})],
        None,
    ),
    "remove a unique_together": ([operations.AlterUniqueTogether("Book", set())], None),
    "create a collation": (
        [postgres.CreateCollation("plain", "C")],
        """CREATE COLLATION plain (lc_collate = 'C', lc_ctype = 'POSIX')""",
    ),
    "add, fill and close a column": (
        [
            operations.AddField("Author", "town", models.CharField(max_length=20, null=True)),
            operations.RunSQL("UPDATE author SET town = 'Solo' WHERE town IS NULL", operations.RunSQL.noop),
            operations.AlterField("Author", "town", models.CharField(max_length=20)),
        ],
        "ALTER TABLE author ADD town text",
    ),
    "rename and alter a column": (
        [
            operations.RenameField("Author", "born", "birth"),
            operations.AlterField("Author", "birth", models.BigIntegerField(null=True)),
        ],
        "ALTER TABLE author ADD birth bigint",
    ),
    "alter and remove a column": (
        [
            operations.AlterField("Author", "born", models.BigIntegerField(null=True)),
            operations.RemoveField("Author", "born"),
        ],
        None,
    ),
}

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


class TestTwice:
    @pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "not atomic"])
    @pytest.mark.parametrize("steps", [case[0] for case in CASES.values()], ids=CASES)
    def test_up_and_down(self, library, steps, atomic):
        atomic = atomic and not is_concurrent(steps)
        database, state = library.database, library.state
        skip_unless_supported(database, steps)
        before = whole(database)
        up(database, state, steps, atomic=atomic)
        after = whole(database)
        assert after != before or len(steps) > 1
        assert changes(database, lambda: up(database, state, steps, atomic=atomic)) == []
        assert whole(database) == after
        down(database, state, steps, atomic=atomic)
        back = whole(database)
        assert back["columns"] == before["columns"]
        down(database, state, steps, atomic=atomic)
        assert whole(database) == back

    @pytest.mark.parametrize(
        ("steps", "in_the_way"), [case for case in CASES.values() if case[1]], ids=[k for k, v in CASES.items() if v[1]]
    )
    def test_something_else_in_the_way(self, library, steps, in_the_way):
        skip_unless_supported(library.database, steps)
        sql(library.database, in_the_way)
        before = whole(library.database)
        with pytest.raises(DefinitionDiffers) as raised:
            up(library.database, library.state, steps, atomic=not is_concurrent(steps))
        assert whole(library.database) == before
        error = raised.value
        assert error.found != error.wanted
        for part in (error.name, error.found, error.wanted):
            assert part
            assert part in str(error)

    @pytest.mark.parametrize("steps", [case[0] for case in CASES.values()], ids=CASES)
    def test_ended_after_any_statement_it_is_finished_by_the_next_run(self, library, base, steps):
        database, state = library.database, library.state
        up(database, state, steps)
        after = whole(database)
        for last in itertools.count(1):
            sql(database, base[1])
            ending = Ending(last)
            with suppress(Ended), database.execute_wrapper(ending):
                up(database, state, steps)
            if ending.left > 0:
                break
            up(database, state, steps)
            assert whole(database) == after, f"ended after {last} statements"


class TestIndex:
    INDEX = models.Index(fields=["born"], name="idx")
    VALID = "SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'idx'::regclass"

    @pytest.fixture
    def author(self, library):
        """A table whose index failed to be built, and that has no duplicates any more."""
        sql(library.database, "INSERT INTO author (name, born) VALUES ('Mochtar', 1)")
        with pytest.raises(IntegrityError):
            sql(library.database, "CREATE UNIQUE INDEX CONCURRENTLY idx ON author (born)")
        sql(library.database, "DELETE FROM author WHERE name = 'Mochtar'")
        assert sql(library.database, self.VALID) == [(False, True)]
        return library

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS idx ON author (born)",
            'create unique index\n concurrently if not exists "idx" on only public."author" (born)',
        ],
    )
    def test_invalid_it_is_built_again_by_raw_sql(self, author, statement):
        up(author.database, author.state, [operations.RunSQL([statement])])
        assert sql(author.database, self.VALID) == [(True, True)]
        assert changes(
            author.database, lambda: up(author.database, author.state, [operations.RunSQL([statement])])
        ) == [" ".join(statement.split())]

    @pytest.mark.parametrize("atomic", [True, False])
    def test_invalid_it_is_built_again_by_django(self, author, atomic):
        kind = operations.AddIndex if atomic else postgres.AddIndexConcurrently
        up(author.database, author.state, [kind("Author", self.INDEX)], atomic=atomic)
        assert sql(author.database, self.VALID) == [(True, False)]

    def test_raw_sql_is_left_alone_otherwise(self, library):
        sql(library.database, "CREATE INDEX idx ON author (name)")
        statement = "CREATE INDEX CONCURRENTLY IF NOT EXISTS idx ON author (born)"
        up(library.database, library.state, [operations.RunSQL([statement])])
        assert "name" in sql(library.database, "SELECT pg_get_indexdef('idx'::regclass)")[0][0]
        with pytest.raises(ProgrammingError):
            up(library.database, library.state, [operations.RunSQL(["DROP TABLE nobody"])])


class TestOtherSchema:
    @pytest.fixture(params=["public", "public, elsewhere"])
    def library(self, library, request):
        """Everything that the cases make or rename to is elsewhere, with other definitions."""
        sql(
            library.database,
            f"""
            CREATE SCHEMA elsewhere;
            CREATE TABLE elsewhere.author (id text, name text, born text, town text);
            CREATE TABLE elsewhere.loan (id text CONSTRAINT c CHECK (id > ''));
            CREATE TABLE elsewhere.writer (id text);
            CREATE TABLE elsewhere.library_shop (id text);
            CREATE INDEX idx ON elsewhere.author (id);
            SET search_path = {request.param};
            """,
        )
        yield library
        sql(library.database, "RESET search_path")

    @pytest.mark.parametrize(
        "case",
        [
            "create a model",
            "delete a model",
            "rename a table",
            "add a column",
            "add an index",
            "add a check",
            "rename an index",
        ],
    )
    def test_it_confuses_nothing(self, library, case):
        steps = CASES[case][0]
        elsewhere = "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'elsewhere'::regnamespace ORDER BY 1"
        before, there = whole(library.database), sql(library.database, elsewhere)
        path = sql(library.database, "SHOW search_path")
        for _ in range(2):
            up(library.database, library.state, steps)
        assert whole(library.database) != before
        for _ in range(2):
            down(library.database, library.state, steps)
        assert whole(library.database)["columns"] == before["columns"]
        assert sql(library.database, elsewhere) == there
        assert sql(library.database, "SHOW search_path") == path


class TestForeignKey:
    FOUND = """
        SELECT convalidated, confdeltype FROM pg_constraint
        WHERE conrelid = 'library_shop'::regclass AND contype = 'f'
    """
    STEPS = [operations.AddField("Shop", "owner", foreign_key("library.Author", null=True))]

    @pytest.mark.parametrize("name", ["library_shop_owner_id_ecc04e15_fk_author_id", "another_name"])
    def test_not_valid_it_is_validated_and_follows_deletes_as_before(self, library, name):
        sql(
            library.database,
            f"ALTER TABLE library_shop ADD owner_id bigint, ADD CONSTRAINT {name}"
            " FOREIGN KEY (owner_id) REFERENCES author ON DELETE SET NULL NOT VALID;"
            "CREATE INDEX library_shop_owner_id_ecc04e15 ON library_shop (owner_id)",
        )
        up(library.database, library.state, self.STEPS)
        assert sql(library.database, self.FOUND) == [(True, "n")]

    def test_missing_it_is_made(self, library):
        sql(library.database, "ALTER TABLE library_shop ADD owner_id bigint")
        up(library.database, library.state, self.STEPS)
        assert sql(library.database, self.FOUND) == [(True, "a")]

    def test_of_a_new_table_that_is_there_without_it(self, library):
        steps = [create("Loan", ("book", foreign_key("library.Book")), db_table="loan")]
        up(library.database, library.state, steps)
        after = whole(library.database)
        sql(
            library.database,
            "ALTER TABLE loan DROP CONSTRAINT loan_book_id_6aba1d82_fk_book_id; DROP INDEX loan_book_id_6aba1d82",
        )
        assert whole(library.database) != after
        up(library.database, library.state, steps)
        assert whole(library.database) == after


def test_a_check_that_is_not_valid_is_validated(library):
    sql(library.database, "ALTER TABLE author ADD CONSTRAINT c CHECK (born > 0) NOT VALID")
    check = models.CheckConstraint(condition=models.Q(born__gt=0), name="c")
    up(library.database, library.state, [operations.AddConstraint("Author", check)])
    assert sql(library.database, "SELECT convalidated FROM pg_constraint WHERE conname = 'c'") == [(True,)]


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
    caplog.set_level(logging.INFO, "gotong_royong.zero_downtime.schema")
    up(library.database, library.state, [operations.AddIndex("Author", TestIndex.INDEX)])
    assert not caplog.messages
    up(library.database, library.state, [operations.AddIndex("Author", TestIndex.INDEX)])
    assert caplog.messages == ["skipped: index idx on author is already there"]


def test_an_error_shows_both_definitions_and_where(library):
    sql(library.database, "CREATE INDEX idx ON author (name)")
    with pytest.raises(DefinitionDiffers, match="idx on author") as raised:
        up(library.database, library.state, [operations.AddIndex("Author", TestIndex.INDEX)])
    assert raised.value.found == "idx INDEX USING btree (name)"
    assert raised.value.wanted == "idx INDEX USING btree (born)"


def test_what_is_missing_is_an_error_of_postgresql(library):
    sql(library.database, "ALTER TABLE author DROP born")
    for step in (
        operations.AlterField("Author", "born", models.BigIntegerField()),
        operations.RenameField("Author", "born", "birth"),
        operations.AddIndex("Author", TestIndex.INDEX),
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
    steps = [operations.AddIndex("Author", TestIndex.INDEX)]
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
