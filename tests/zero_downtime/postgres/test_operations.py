"""Can each operation be carried out twice, and go on wherever it was ended?"""

import itertools
from contextlib import suppress

import pytest
from django.contrib.postgres import operations as postgres
from django.db import IntegrityError, ProgrammingError, models
from django.db.migrations import operations

from gotong_royong.zero_downtime.exceptions import DefinitionDiffers
from tests.zero_downtime.postgres.cases import CASES, INDEX, create, foreign_key
from tests.zero_downtime.postgres.conftest import (
    Ended,
    Ending,
    changes,
    down,
    is_concurrent,
    skip_unless_supported,
    sql,
    up,
    whole,
)


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

    @pytest.mark.parametrize("atomic", [True, False])
    def test_invalid_it_is_built_again_by_django(self, author, atomic):
        kind = operations.AddIndex if atomic else postgres.AddIndexConcurrently
        up(author.database, author.state, [kind("Author", INDEX)], atomic=atomic)
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
