"""What is seen of a migration?"""

import pytest
from django.db.models import Q

from gotong_royong.zero_downtime.backfills import declarations
from gotong_royong.zero_downtime.linter import judge
from tests.zero_downtime.linter.history import lint, trace

NOT_ATOMIC = "atomic = False\noperations = [migrations.RunSQL({sql!r}, {back!r})]"
SLEEPS = """
import {module}
def wait(apps, schema_editor):
    {code}
operations = [migrations.RunPython(wait, migrations.RunPython.noop)]
"""
ADD_PAID = """operations = [migrations.AddField("order", "paid", models.BooleanField(null=True))]"""


def locks(tried, sql, back=""):
    seen = trace(tried, NOT_ATOMIC.format(sql=sql, back=back))[0]
    assert not seen.up.failure, seen.up.failure
    return {(lock.table, lock.sql) for statement in seen.up.statements for lock in statement.takes}


class TestStatements:
    def test_a_rewrite_and_the_scan_of_another_table_are_told_apart(self, tried):
        seen = trace(
            tried,
            "operations = [migrations.RunSQL('ALTER TABLE shop_order ALTER number TYPE bigint', ''),"
            "migrations.RunSQL('SELECT count(*) FROM shop_customer', '')]",
        )[0]
        first, second = seen.up.statements
        assert (first.rewrites, second.rewrites) == (("shop_order",), ())
        assert (second.scans, second.transaction) == (("shop_customer",), first.transaction)
        assert first.taken["shop_order"].blocks == "reads and writes"
        assert second.taken["shop_customer"].blocks == ""
        assert second.held["shop_order"].sql == "ACCESS EXCLUSIVE"

    def test_a_table_that_is_locked_already_is_seen_to_change(self, tried):
        lines = ["LOCK TABLE shop_order", "SELECT 1", "DO $$ BEGIN EXECUTE 'ALTER TABLE shop_order ADD a int'; END $$"]
        lines += ["CREATE INDEX i ON shop_order (a)", "DROP INDEX i", "ALTER TABLE shop_order ALTER a SET DEFAULT 1"]
        lines += ["ALTER TABLE shop_order ALTER a DROP DEFAULT", "ALTER TABLE shop_order DROP a"]
        (seen,) = trace(tried, f"operations = [migrations.RunSQL(sql, '') for sql in {lines!r}]")
        found = [{(c.kind, c.name) for c in statement.changes} for statement in seen.up.statements]
        column, index = {("column", "a")}, {("index", "i")}
        assert found == [set(), set(), column, index, index, column, column, column]

    @pytest.mark.parametrize(
        "sql",
        [
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON shop_order (number)",
            "DROP INDEX CONCURRENTLY IF EXISTS shop_order_created",
            "REINDEX TABLE CONCURRENTLY shop_order",
        ],
    )
    def test_what_may_run_in_no_transaction_is_seen_by_the_second_session(self, tried, sql):
        assert locks(tried, sql) == {("shop_order", "SHARE UPDATE EXCLUSIVE")}

    def test_vacuum_full_is_seen_to_lock_and_rewrite(self, tried):
        statement = trace(tried, NOT_ATOMIC.format(sql="VACUUM FULL shop_order", back=""))[0].up.statements[0]
        assert statement.taken["shop_order"].sql == "ACCESS EXCLUSIVE"
        assert statement.rewrites == ("shop_order",)

    def test_raw_sql_with_a_transaction_of_its_own(self, tried):
        sql = "BEGIN; ALTER TABLE shop_order ALTER note SET DEFAULT ''; LOCK TABLE shop_customer IN SHARE MODE; COMMIT"
        assert locks(tried, sql) == {("shop_order", "ACCESS EXCLUSIVE"), ("shop_customer", "SHARE")}

    def test_several_statements_are_judged_as_migrate_sends_them(self, tried):
        add = "ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS c, ADD CONSTRAINT c CHECK (number > 0) NOT VALID"
        build = "CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON shop_order (number, created)"
        sql = ";\n".join([add, "/* ; */ ALTER TABLE shop_order VALIDATE CONSTRAINT c", build.format("i")])
        (seen,) = trace(tried, NOT_ATOMIC.format(sql=f"{sql}; {build.format('j')};", back=""))
        assert seen.up.failure is None
        locks = [{lock.sql for lock in one.takes} for one in seen.up.statements]
        assert locks == [{"ACCESS EXCLUSIVE"}] + [{"SHARE UPDATE EXCLUSIVE"}] * 3

    def test_plpgsql_is_seen_through(self, tried):
        sql = "DO $$ BEGIN EXECUTE 'CREATE ' || 'INDEX i ON shop_order (number)'; END $$"
        assert lint(tried, NOT_ATOMIC.format(sql=sql, back="DROP INDEX CONCURRENTLY i"))[0] >= {"E103"}

    @pytest.mark.parametrize("sql", ["DEALLOCATE ALL", "DISCARD ALL"])
    def test_what_the_observer_asks_is_planned_once_and_again_where_it_was_forgotten(self, tried, sql):
        assert lint(tried, NOT_ATOMIC.format(sql=sql, back=""), ADD_PAID) == [set(), set()]
        with tried.cursor() as cursor:
            cursor.execute("SELECT generic_plans FROM pg_prepared_statements WHERE name = 'zero_downtime_observe'")
            assert cursor.fetchone()[0] >= 2

    def test_all_of_an_index_is_read_as_much_as_all_of_its_table(self, tried):
        sql = "INSERT INTO shop_customer (name) SELECT created::text FROM shop_order"
        (seen,) = trace(tried, f"operations = [migrations.RunSQL({sql!r}, '')]")
        assert seen.up.statements[0].scans == ("shop_order",)

    def test_what_is_told_has_the_same_order_each_time(self, tried):
        sql = "LOCK TABLE shop_order, django_content_type, shop_customer IN SHARE MODE"
        (seen,) = trace(tried, f"operations = [migrations.RunSQL({sql!r}, '')]")
        told = [lock.table for lock in seen.up.statements[0].takes]
        assert told == ["shop_customer", "shop_order", "django_content_type"]

    def test_an_earlier_scan_is_not_a_later_one(self, tried):
        reading = "operations = [migrations.RunSQL('SELECT count(*) FROM shop_order', '')]"
        for found in lint(tried, reading, ADD_PAID, reading):
            assert found == set()

    def test_the_statement_of_an_index_is_its_operation_s_though_it_is_put_off(self, tried):
        seen = trace(
            tried,
            """operations = [
                migrations.AddField("order", "code", models.CharField(max_length=9, db_default="", db_index=True)),
                migrations.AddField("order", "paid", models.BooleanField(null=True)),
            ]""",
        )[0]
        assert [s.operation for s in seen.up.statements if "CREATE INDEX" in s.sql] == [0, 0]


class TestRows:
    """Code that does something only where there are rows is run once more where there are some."""

    LOOP = """
def work(apps, schema_editor):
    {code}
operations = [migrations.RunPython(work, migrations.RunPython.noop)]
"""

    def test_one_update_for_each_row_is_seen(self, tried):
        code = "[order.save() for order in apps.get_model('shop', 'Order').objects.select_related('customer')]"
        assert lint(tried, self.LOOP.format(code=code)) == [{"E111"}]

    def test_code_within_another_operation_is_seen(self, tried):
        code = "[order.save() for order in apps.get_model('shop', 'Order').objects.select_related('customer')]"
        inside = self.LOOP.format(code=code).replace("[migrations", "[migrations.SeparateDatabaseAndState([migrations")
        assert lint(tried, inside.replace("noop)]", "noop)])]")) == [{"E111"}]

    def test_a_few_rows_that_are_always_made_are_not(self, tried):
        code = "[apps.get_model('shop', 'Customer').objects.create(name=name) for name in 'abcdefg']"
        assert lint(tried, self.LOOP.format(code=code)) == [set()]

    def test_a_new_row_for_each_row_is_seen(self, tried):
        code = "[order.__class__.objects.create(number=1, customer_id=1) for order in {}.all()]".format(
            "apps.get_model('shop', 'Order').objects.select_related('customer')"
        )
        assert lint(tried, self.LOOP.format(code=code)) == [{"E111"}]

    def test_the_way_back_is_tried_with_rows_too(self, tried):
        code = "[order.save() for order in apps.get_model('shop', 'Order').objects.select_related('customer')]"
        back = self.LOOP.format(code=code).replace(
            "(work, migrations.RunPython.noop)", "(migrations.RunPython.noop, work)"
        )
        (seen,) = trace(tried, back)
        assert [(one.rule.id, one.direction) for one in judge(seen)] == [("E111", "down")]

    def test_what_commits_row_by_row_keeps_nobody_but_a_whole_table_does(self, tried):
        alone = "atomic = False" + self.LOOP
        each = "[order.save() for order in apps.get_model('shop', 'Order').objects.select_related('customer')]"
        assert lint(tried, alone.format(code=each)) == [set()]
        at_once = """orders = apps.get_model('shop', 'Order').objects
    orders.exists() and orders.update(note='')"""
        assert lint(tried, alone.format(code=at_once)) == [{"E111"}]
        assert lint(tried, alone.format(code=each).replace("noop)", "noop, atomic=True)")) == [{"E111"}]

    def test_a_loop_that_ends_only_where_all_rows_are_as_it_wants_is_not_blamed(self, tried, monkeypatch):
        monkeypatch.setattr("gotong_royong.zero_downtime.linter.runner.LIMIT_OF_REHEARSAL", 0.2)
        code = """while apps.get_model('shop', 'Customer').objects.filter(name='').update(name='x') == 0:
        if not apps.get_model('shop', 'Customer').objects.exists():
            break"""
        assert lint(tried, "atomic = False" + self.LOOP.format(code=code), ADD_PAID)[1] == set()

    def test_the_rows_are_gone_afterwards(self, tried):
        code = "[customer.save() for customer in apps.get_model('shop', 'Customer').objects.all()]"
        trace(tried, self.LOOP.format(code=code))
        with tried.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM shop_customer")
            assert cursor.fetchone() == (0,)

    def test_code_that_fails_on_such_rows_is_not_blamed(self, tried):
        code = "[1 / 0 for order in apps.get_model('shop', 'Order').objects.all()]"
        assert lint(tried, self.LOOP.format(code=code), ADD_PAID) == [set(), set()]


class TestRealModels:
    """A model as the code has it today is found wherever the function names it, and another is not taken for one."""

    SOURCE = """
__name__ = "shop_step"
import django.contrib.contenttypes.models as types
from django.apps import apps as today
class Work:
    def go(self):
        types.ContentType.objects.count()
def work(apps, schema_editor):
    {code}
operations = [{operation}]
"""
    RUN = "migrations.RunPython(work, migrations.RunPython.noop)"

    @pytest.mark.parametrize(
        ("code", "names"),
        [
            ("[types.ContentType.objects.count() for _ in 'a']", "contenttypes.ContentType"),
            ("Work().go()", "contenttypes.ContentType"),
            ("from django.contrib.contenttypes.models import ContentType", "contenttypes.ContentType"),
            ("types.models.Model", None),
            ("today.get_model('contenttypes', 'ContentType').objects.count()", "app.Model"),
            ("today.get_app_config('contenttypes'); apps.get_model('shop', 'Order')", None),
        ],
    )
    @pytest.mark.parametrize("operation", [RUN, f"migrations.SeparateDatabaseAndState([{RUN}])"])
    def test_it_is_found(self, tried, code, names, operation):
        (seen,) = trace(tried, self.SOURCE.format(code=code, operation=operation))
        told = [one.message for one in judge(seen) if one.rule.id == "E307"]
        assert [message.split(" from the code")[0] for message in told] == ([f"work uses {names}"] if names else [])


class TestPlans:
    MAKE = """operations = [migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True)),
        ("name", models.CharField(max_length=9))])]"""
    INDEX = """operations = [migrations.AddIndex("item", models.Index(fields=["name"], name="item_name"))]"""

    def test_a_table_of_an_earlier_migration_has_users(self, tried):
        assert lint(tried, self.MAKE, self.INDEX) == [set(), {"E103"}]

    def test_a_table_of_the_same_deploy_has_none(self, tried):
        assert lint(tried, self.MAKE, self.INDEX, one_deploy=True) == [set(), set()]

    def test_the_running_code_is_that_of_before_the_deploy(self, tried):
        forget = """operations = [migrations.SeparateDatabaseAndState(
            state_operations=[migrations.RemoveField("order", "note")])]"""
        drop = """operations = [migrations.RunSQL(
            "ALTER TABLE shop_order DROP COLUMN IF EXISTS note", "ALTER TABLE shop_order ADD COLUMN note text")]"""
        assert lint(tried, forget, drop) == [set(), set()]
        assert lint(tried, forget, drop, one_deploy=True) == [set(), {"E202"}]

    def test_a_migration_of_after_the_deploy_meets_the_newest_code(self, tried):
        drop = "stage = Stage.POST_DEPLOY\noperations = [migrations.RunSQL({!r}, {!r})]".format(
            "ALTER TABLE shop_order DROP COLUMN IF EXISTS note", "ALTER TABLE shop_order ADD COLUMN note text"
        )
        assert "E202" in lint(tried, drop)[0]

    def test_a_table_in_whose_place_another_comes_is_still_there_for_the_code(self, tried):
        swap = "ALTER TABLE shop_order RENAME TO was; CREATE TABLE shop_order (LIKE was INCLUDING DEFAULTS{})"
        back = "DROP TABLE shop_order; ALTER TABLE was RENAME TO shop_order"
        assert "E201" not in lint(tried, f"operations = [migrations.RunSQL({swap.format('')!r}, {back!r})]")[0]
        less = swap.format("); ALTER TABLE shop_order DROP COLUMN (note").replace("(note)", "note")
        assert "E201" in lint(tried, f"operations = [migrations.RunSQL({less!r}, {back!r})]")[0]

    def test_a_backfill_says_which_columns_it_fills(self, tried, monkeypatch):
        add = """operations = [migrations.AddField("order", "code", models.IntegerField(null=True))]"""
        index = NOT_ATOMIC.format(sql="CREATE INDEX CONCURRENTLY i ON shop_order (code)", back="DROP INDEX i")
        fill = """atomic = False\noperations = [RunBackfill("shop.fill")]"""
        body = {"model": "shop.Order", "where": Q(code=None), "update": {"code": 0}, "name": "shop.fill"}
        monkeypatch.setitem(declarations.DECLARED, "shop.fill", type("Fill", (declarations.BackfillDeclaration,), body))
        seen = trace(tried, add, index, fill)
        told = [one for one in judge(seen[2]) if one.rule.id == "W416"]
        assert [one.message.split(":")[0] for one in told] == [
            "code of shop_order has index i already, from shop.20260101020000_step"
        ]
        assert "W416" not in lint(tried, add, fill, index)[1]
        code = "[order.save() for order in apps.get_model('shop', 'Order').objects.select_related('customer')]"
        assert "W416" not in lint(tried, add, index, TestRows.LOOP.format(code=code))[2]

    def test_what_a_backfill_in_python_fills_is_seen_where_there_are_rows(self, tried, monkeypatch):
        add = """operations = [migrations.AddField("order", "code", models.IntegerField(null=True))]"""
        index = NOT_ATOMIC.format(sql="CREATE INDEX CONCURRENTLY i ON shop_order (code)", back="DROP INDEX i")
        fill = """atomic = False\noperations = [RunBackfill("shop.fill")]"""

        def process(self, batch):
            for order in batch:
                order.code = order.number
                order.save(update_fields=["code"])

        body = {"model": "shop.Order", "where": Q(code=None), "process": process, "name": "shop.fill"}
        monkeypatch.setitem(declarations.DECLARED, "shop.fill", type("Fill", (declarations.BackfillDeclaration,), body))
        found = lint(tried, add, index, fill)[2]
        assert "W416" in found
        assert "E111" not in found
        assert "W416" not in lint(tried, add, fill, index)[1]

    def test_a_backfill_of_all_rows_is_done_in_batches(self, tried, monkeypatch):
        body = {"model": "shop.Order", "update": {"number": 0}, "name": "shop.fill"}
        monkeypatch.setitem(declarations.DECLARED, "shop.fill", type("Fill", (declarations.BackfillDeclaration,), body))
        assert lint(tried, """atomic = False\noperations = [RunBackfill("shop.fill")]""") == [{"E302"}]

    def test_two_leaves(self, tried):
        seen = trace(tried, ADD_PAID)[0]
        assert seen.leaves == ()

    def test_a_constraint_that_stays_valid_on_the_way_back_leads_nowhere_else(self, tried):
        check = 'models.CheckConstraint(condition=models.Q(number__gt=0), name="positive")'
        add = f"stage = Stage.POST_DEPLOY\noperations = [AddConstraintNotValid('order', {check})]"
        assert lint(tried, add, "operations = [ValidateConstraint('order', 'positive')]") == [set(), set()]
        drop = NOT_ATOMIC.format(
            sql="ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS positive",
            back="ALTER TABLE shop_order ADD CONSTRAINT positive CHECK (number > 0) NOT VALID",
        )
        assert "E304" in lint(tried, add, "operations = [ValidateConstraint('order', 'positive')]", drop)[2]

    def test_raw_sql_within_another_operation_is_tried_twice(self, tried):
        inside = "atomic = False\noperations = [migrations.SeparateDatabaseAndState([migrations.RunSQL({!r}, {!r})])]"
        assert lint(tried, inside.format("CREATE SEQUENCE numbers", "DROP SEQUENCE numbers")) == [{"E305"}]


class TestWaivers:
    def test_a_waived_rule_is_not_told(self, tried):
        index = """operations = [IgnoreRules("E103", reason="It has twelve rows."),
            migrations.AddIndex("order", models.Index(fields=["number"], name="order_number"))]"""
        assert lint(tried, index) == [set()]

    def test_a_silenced_rule_is_not_told(self, tried, settings):
        settings.SILENCED_SYSTEM_CHECKS = ["zero_downtime.W412"]
        wide = "CREATE INDEX CONCURRENTLY IF NOT EXISTS wide ON shop_order (customer_id, number, created, note)"
        assert lint(tried, NOT_ATOMIC.format(sql=wide, back="DROP INDEX CONCURRENTLY IF EXISTS wide")) == [set()]

    def test_a_waiver_may_be_needed_only_when_its_table_is_older(self, tried):
        makes = TestPlans.MAKE.replace("operations = [", 'operations = [IgnoreRules("E103", reason="For later."),')
        assert lint(tried, makes) == [{"W402"}]
        (seen,) = trace(tried, makes, one_deploy=True)
        assert judge(seen, whole_history=False) == []

    def test_a_waiver_of_no_rule_is_told(self, tried):
        (seen,) = trace(tried, """operations = [IgnoreRules("E1003", reason="It is small.")]""", one_deploy=True)
        assert [one.message for one in judge(seen, whole_history=False)] == [
            "IgnoreRules waives E1003, which is no rule. Did you mean E103?"
        ]

    def test_a_waiver_wants_a_reason(self, tried):
        with pytest.raises(ValueError, match="reason"):
            lint(tried, """operations = [IgnoreRules("E103", reason=" ")]""")


class TestSeveralInOne:
    """Several statements in one string, or several operations in one: each is judged at its place."""

    def test_a_required_column_hides_nothing_that_comes_with_it(self, tried):
        sql = (
            "ALTER TABLE django_content_type ADD code text NOT NULL; "
            "CREATE INDEX by_app ON django_content_type (app_label); "
            "ALTER TABLE django_content_type ALTER model SET NOT NULL"
        )
        (broken,) = lint(tried, f'operations = [migrations.RunSQL("{sql}", migrations.RunSQL.noop)]')
        assert {"E203", "E103", "E107"} <= broken

    def test_a_required_column_is_one_on_a_table_without_a_model(self, tried):
        add = 'operations = [migrations.RunSQL("ALTER TABLE django_content_type ADD code text{}", "")]'
        required, filled = lint(tried, add.format(" NOT NULL"))[0], lint(tried, add.format(" NOT NULL DEFAULT ''"))[0]
        assert "E203" in required
        assert "E203" not in filled

    def test_each_of_three_tables_is_told_of_its_own_statement(self, tried):
        tables = ["shop_customer", "shop_order", "django_content_type"]
        each = "".join(f'migrations.RunSQL("ALTER TABLE {table} ADD code text NOT NULL", ""),' for table in tables)
        (seen,) = trace(tried, f"operations = [{each}]")
        found = {one.table: (one.operation, one.statement) for one in judge(seen) if one.rule.id == "E203"}
        assert found == {
            table: (number, f"ALTER TABLE {table} ADD code text NOT NULL") for number, table in enumerate(tables)
        }

    def test_each_statement_of_a_string_has_its_own_locks(self, tried):
        sql = "ALTER TABLE shop_order ADD paid boolean; CREATE INDEX by_name ON shop_customer (name)"
        (seen,) = trace(tried, f'operations = [migrations.RunSQL("{sql}", migrations.RunSQL.noop)]')
        assert [sorted(one.taken) for one in seen.up.statements] == [["shop_order"], ["shop_customer"]]
        (index,) = [one for one in judge(seen) if one.rule.id == "E103"]
        assert index.statement == "CREATE INDEX by_name ON shop_customer (name)"

    def test_each_operation_within_one_is_told_once(self, tried):
        (seen,) = trace(
            tried,
            """operations = [migrations.SeparateDatabaseAndState(database_operations=[
                migrations.AddIndex("order", models.Index(fields=["number"], name="by_number")),
                migrations.AddIndex("order", models.Index(fields=["note"], name="by_note")),
            ])]""",
        )
        found = [one.statement for one in judge(seen) if one.rule.id == "E103"]
        assert len(found) == 2
        assert "by_number" in found[0]
        assert "by_note" in found[1]


def test_a_schema_that_is_renamed_takes_its_tables_away(tried):
    rename = 'migrations.RunSQL("ALTER SCHEMA public RENAME TO old", "ALTER SCHEMA old RENAME TO public")'
    (seen,) = trace(tried, f"operations = [{rename}]")
    gone = {one.table for one in judge(seen) if one.rule.id == "E201"}
    assert gone == {"shop_customer", "shop_order"}
    with tried.cursor() as cursor:
        cursor.execute("ALTER SCHEMA old RENAME TO public")


@pytest.mark.parametrize(
    ("sql", "of_all"),
    [
        ("UPDATE shop_order SET number = 0 WHERE id > 0", True),
        ("UPDATE shop_order SET number = 0 WHERE id IS NOT NULL", True),
        ("UPDATE shop_order SET number = 0 WHERE note IS NOT NULL", True),
        ("UPDATE shop_order SET number = 0 WHERE id > 0 AND (number = 1 OR note IS NULL)", True),
        ("UPDATE shop_order SET number = 0 WHERE customer_id IN (SELECT id FROM shop_customer)", True),
        ("DELETE FROM shop_order WHERE id > 0", True),
        ("UPDATE shop_order SET number = 0 WHERE id = 1", False),
        ("UPDATE shop_order SET number = 0 WHERE id IN (1, 2, 3)", False),
        ("DELETE FROM shop_order WHERE id BETWEEN 1 AND 4", False),
    ],
)
def test_a_change_of_nearly_the_whole_table_is_known_by_its_rows(tried, sql, of_all):
    (broken,) = lint(tried, f'operations = [migrations.RunSQL("{sql}", migrations.RunSQL.noop)]')
    assert ("E111" in broken) is of_all
