"""Is SQL and code that ends, begins or leaves transactions of its own never repeated, recorded or denied wrongly?"""

import pytest

from tests.databases import conninfo
from tests.zero_downtime.load import holding, load
from tests.zero_downtime.running.test_raw_sql import NOT_ATOMIC, READ, items, python, sql

__all__ = ["items"]  # a fixture

COUNT = "SELECT sum(size) FROM items"
RAISE = "UPDATE items SET size = size + 1"
ALTER = "ALTER TABLE items ADD COLUMN more int"
PROCEDURE = f"CREATE PROCEDURE raise_all() LANGUAGE plpgsql AS $$ BEGIN {RAISE}; COMMIT; {ALTER}; END $$"
A_ROW = "SELECT FROM items WHERE id = 3 FOR UPDATE"
FROM_1_TO_100 = 100 * 101 // 2


class TestWhatCommitsOnItsWay:
    @pytest.mark.parametrize("of", ["forwards", "backwards"])
    @pytest.mark.parametrize("end", ["COMMIT", "/* now */ end", "ROLLBACK; BEGIN"])
    def test_sql_that_would_end_the_transaction_of_its_migration_is_not_executed(self, shop, items, end, of):
        ending = f"{RAISE}; {end}; {ALTER}; SELECT 1 / 0"
        there, back = (ending, "") if of == "forwards" else ("SELECT 1", ending)
        shop.write("0002_sizes", f"column('items', 'less'), migrations.RunSQL({there!r}, {back!r})")
        if of == "backwards":
            shop.succeed("migrate")
        said = shop.fail("migrate", "--auto-rollback") if of == "forwards" else shop.fail("rollback", "--yes")
        assert "The migration is one transaction, and its SQL would end that" in said
        assert "That was not executed" in said
        columns = 2 if of == "forwards" else 3
        assert len(items.execute("SELECT * FROM items").description) == columns
        assert items.execute(COUNT).fetchone() == (FROM_1_TO_100,)

    @pytest.mark.parametrize(
        "operation",
        [
            sql("CALL raise_all()"),
            sql(f"DO $$ BEGIN {RAISE}; COMMIT; {ALTER}; END $$"),
            python(repr("CALL raise_all()")),
        ],
    )
    def test_what_has_committed_is_not_run_again(self, shop, items, scratch, operation):
        items.execute(PROCEDURE)
        shop.write("0002_sizes", operation, NOT_ATOMIC)
        with holding(conninfo(scratch), READ, 30), load(conninfo(scratch), READ) as victims:
            said = shop.fail("migrate", "--auto-rollback")
        assert "What the CALL or DO committed stays, and it was not run again" in said
        assert "may stay" in said
        assert "The database is as it was" not in said
        assert "had done nothing" not in said
        assert items.execute(COUNT).fetchone() == (FROM_1_TO_100 + 100,)
        assert victims[0].longest < 2

    def test_a_loop_that_commits_each_row_waits_for_one_that_somebody_has(self, shop, items, scratch):
        loop = "FOR i IN 1..3 LOOP UPDATE items SET size = size + 1 WHERE id = i; COMMIT; END LOOP"
        shop.write("0002_sizes", sql(f"DO $$ BEGIN {loop}; END $$"), NOT_ATOMIC)
        with holding(conninfo(scratch), A_ROW, 2.5, from_first_wait=True):
            shop.succeed("migrate")
        assert items.execute(COUNT).fetchone() == (FROM_1_TO_100 + 3,)

    @pytest.mark.parametrize("sql_of", ["CALL raise_all()", f"DO $$ BEGIN {RAISE}; COMMIT; PERFORM 1 / 0; END $$"])
    def test_what_it_did_before_an_error_of_its_own_is_not_denied(self, shop, items, sql_of):
        items.execute(PROCEDURE.replace(ALTER, "PERFORM 1 / 0"))
        shop.write("0002_sizes", sql(sql_of), NOT_ATOMIC)
        for options in ([], ["--auto-rollback"]):
            said = shop.fail("migrate", *options)
            assert "division by zero" in said
            assert "What the CALL or DO committed" in said
            assert "had done nothing" not in said
            assert "The database is as it was" not in said


def code(text):
    """Write an operation whose code is an expression of ``c``, the connection."""
    return (
        f"migrations.RunPython(lambda apps, editor: (lambda c: {text})(editor.connection), migrations.RunPython.noop)"
    )


class TestTransactionLeftOpen:
    @pytest.mark.parametrize("options", [[], ["--auto-rollback"]])
    @pytest.mark.parametrize(
        "operation",
        [
            f"migrations.RunSQL('BEGIN; {ALTER}', 'ALTER TABLE items DROP COLUMN more')",
            f"migrations.RunSQL(['BEGIN', '{ALTER}'], 'ALTER TABLE items DROP COLUMN more')",
            code(f"(c.set_autocommit(False), c.cursor().execute('{ALTER}'))"),
            code(f"(c.cursor().execute('begin'), c.cursor().execute('{ALTER}'))"),
        ],
    )
    def test_its_step_fails_and_is_not_recorded(self, shop, items, operation, options):
        shop.write("0002_more", f"{operation}, column('items', 'less')", NOT_ATOMIC)
        said = shop.fail("migrate", *options)
        assert "operation 1 of 2. It left a transaction open, which was rolled back" in said
        assert ("RunPython" in operation) or ("had done nothing yet" in said) or ("is as it was before" in said)
        assert len(items.execute("SELECT * FROM items").description) == 2
        assert not items.execute("SELECT FROM django_migrations WHERE name = '0002_more'").rowcount
        shop.write("0002_more", f"{sql(f'BEGIN; {ALTER}; COMMIT')}, column('items', 'less')", NOT_ATOMIC)
        shop.succeed("migrate")
        assert len(items.execute("SELECT * FROM items").description) == 4

    @pytest.mark.parametrize("options", [[], ["--auto-rollback"]])
    def test_what_an_error_rolled_back_is_not_counted_as_done(self, shop, items, options):
        several = ["BEGIN", ALTER, "SELECT 1 / 0", "COMMIT"]
        shop.write("0002_more", f"migrations.RunSQL({several!r}, 'ALTER TABLE items DROP COLUMN more')", NOT_ATOMIC)
        said = shop.fail("migrate", *options)
        assert "division by zero" in said
        assert "had done nothing yet" in said or "is as it was before" in said
        assert len(items.execute("SELECT * FROM items").description) == 2

    def test_what_was_committed_before_it_is_not_done_again(self, shop, items, scratch):
        shop.write("0002_more", sql(RAISE, "BEGIN", ALTER, "COMMIT"), NOT_ATOMIC)
        with holding(conninfo(scratch), READ, 3, from_first_wait=True):
            said = shop.fail("migrate")
        assert "lock timeout" in said
        assert "what it did before that stays" in said
        assert items.execute(COUNT).fetchone() == (FROM_1_TO_100 + 100,)

    def test_one_that_has_only_begun_is_tried_again(self, shop, items, scratch):
        shop.write("0002_more", sql("BEGIN", RAISE, ALTER, "COMMIT"), NOT_ATOMIC)
        with holding(conninfo(scratch), READ, 1, from_first_wait=True):
            shop.succeed("migrate")
        assert items.execute(COUNT).fetchone() == (FROM_1_TO_100 + 100,)

    def test_a_way_back_that_leaves_one_open_is_not_recorded(self, shop, items):
        shop.write(
            "0002_more", f"migrations.RunSQL('{ALTER}', 'BEGIN; ALTER TABLE items DROP COLUMN more')", NOT_ATOMIC
        )
        shop.succeed("migrate")
        assert "It left a transaction open" in shop.fail("rollback", "--yes")
        assert len(items.execute("SELECT * FROM items").description) == 3
        assert items.execute("SELECT FROM django_migrations WHERE name = '0002_more'").rowcount == 1
