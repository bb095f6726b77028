"""What becomes of a migration that fails, hangs or reaches out?"""

import psycopg
import pytest
from django.db import connection

from gotong_royong.zero_downtime.linter import judge
from gotong_royong.zero_downtime.linter.trace import fill
from tests.zero_downtime.linter.history import lint, loader_of, trace
from tests.zero_downtime.linter.test_trace import ADD_PAID, NOT_ATOMIC, SLEEPS

pytestmark = pytest.mark.once


class TestBadInput:
    def test_one_that_raises_is_told_and_the_next_is_judged_as_far_as_that_goes(self, tried):
        raising = "operations = [migrations.RunSQL('ALTER TABLE shop_order DROP COLUMN no_such', '')]"
        index = """operations = [migrations.AddIndex("order", models.Index(fields=["number"], name="order_number"))]"""
        assert lint(tried, raising, index) == [{"E301"}, {"E103", "W401"}]

    def test_one_that_fails_because_of_another_is_not_blamed(self, tried):
        raising = """operations = [migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True))]),
            migrations.RunSQL("SELECT 1/0", "")]"""
        needing = """operations = [migrations.AddField("item", "paid", models.BooleanField(null=True))]"""
        seen = trace(tried, raising, needing)
        assert seen[1].because_of.startswith("shop.20260101010000_step (")
        assert lint(tried, raising, needing) == [{"E301"}, {"W401"}]

    @pytest.mark.parametrize(
        ("module", "code"),
        [
            ("time", "time.sleep(100)"),
            ("time", "[None for _ in iter(int, 1)]"),
            ("django.db as d", "d.connection.cursor().execute('SELECT pg_sleep(100)')"),
        ],
        ids=["sleeps", "loops", "waits"],
    )
    def test_one_that_does_not_end_is_stopped(self, tried, module, code):
        source = SLEEPS.format(module=module, code=code)
        seen = trace(tried, source, ADD_PAID, limit=1)
        assert seen[0].up.failure.message.startswith("It was stopped after 1 s, ")
        assert lint(tried, source, ADD_PAID, limit=1) == [{"W401"}, {"W401"}]

    def test_one_that_reaches_for_the_network_is_refused(self, tried):
        code = "socket.create_connection(('127.0.0.1', 9), timeout=1)"
        seen = trace(tried, SLEEPS.format(module="socket", code=code))[0]
        assert "lets no migration reach the network" in seen.up.failure.message
        assert seen.up.failure.environment

    def test_one_that_prints_does_not_write_between_the_reports(self, tried, capsys):
        lint(tried, SLEEPS.format(module="os", code="print('here')"))
        assert capsys.readouterr().out == ""

    def test_one_that_does_not_fit_the_models_is_told_and_the_next_is_still_judged(self, tried):
        misfit = """operations = [migrations.AddField("order", "code", models.IntegerField(null=True)),
            migrations.RemoveField("order", "nothing")]"""
        seen = trace(tried, misfit, ADD_PAID, "stage = Stage.POST_DEPLOY\n" + ADD_PAID.replace("paid", "late"))
        assert [[one.rule.id for one in judge(each)] for each in seen] == [["E301"], ["W401"], ["W401"]]
        assert seen[0].up.failure.operation == 1
        assert "'Remove field nothing from order' does not fit what comes before it: " in seen[0].up.failure.message
        assert lint(tried, ADD_PAID, misfit.replace("order", "gone")) == [set(), {"E301"}]

    def test_one_whose_backfill_is_not_declared_is_told(self, tried):
        assert lint(tried, """atomic = False\noperations = [RunBackfill("shop.none")]""", ADD_PAID) == [
            {"E301"},
            {"W401"},
        ]

    def test_one_that_exits_does_not_end_the_linter(self, tried):
        assert lint(tried, SLEEPS.format(module="sys", code="sys.exit(3)"), ADD_PAID) == [{"E301"}, {"W401"}]

    def test_one_that_is_stopped_after_another_has_failed_is_told_for_itself(self, tried):
        failing = SLEEPS.format(module="time", code="1 / 0")
        seen = trace(tried, failing, SLEEPS.format(module="time", code="time.sleep(9)"), limit=0.3)
        assert [one.message for one in judge(seen[1])] == [
            "Not all is known about this migration: It was stopped after 0.3 s, though it ran on tables without rows."
        ]

    def test_a_library_may_wrap_what_refuses_the_network(self, tried):
        code = "urllib.request.urlopen('http://127.0.0.1:9/')"
        assert lint(tried, SLEEPS.format(module="urllib.request", code=code)) == [{"W401"}]

    def test_a_library_may_carry_what_refuses_the_network_in_an_error_of_its_own(self, tried):
        """As requests and urllib3 do, whose errors are not raised while another one is handled."""
        code = """
    try:
        socket.create_connection(("127.0.0.1", 9))
    except OSError as error:
        refused = error
    class MaxRetries(Exception):
        reason = None
    wrapped = MaxRetries("again and again")
    wrapped.reason, wrapped.__cause__ = refused, wrapped
    raise ValueError(wrapped) from None"""
        assert lint(tried, SLEEPS.format(module="socket", code=code)) == [{"W401"}]

    def test_the_configured_server_is_out_of_reach_of_psycopg_too(self, tried):
        host = tried.settings_dict["HOST"]
        for elsewhere in ("127.0.0.1", "/elsewhere", ""):
            code = f"psycopg.connect(host={elsewhere!r}, dbname='postgres')"
            seen = trace(tried, SLEEPS.format(module="psycopg", code=code))[0]
            assert "lets no migration reach the network" in seen.up.failure.message
            assert seen.up.failure.environment
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=host, dbname="postgres", user="keeper")

    def test_one_that_needs_a_role_cannot_be_judged(self, tried):
        assert lint(tried, NOT_ATOMIC.format(sql="GRANT SELECT ON shop_order TO nobody_here", back="")) == [{"W401"}]

    @pytest.mark.parametrize("atomic", ["", "atomic = False\n"])
    @pytest.mark.parametrize(
        "sql",
        ["CREATE ROLE made_by_a_linter", "DO $$ BEGIN EXECUTE 'CREATE ' || 'ROLE made_by_a_linter'; END $$",
         "COMMENT ON DATABASE template1 IS 'made_by_a_linter'", "DROP DATABASE IF EXISTS made_by_a_linter",
         "GRANT CREATE ON DATABASE template1 TO pg_monitor", "-- why\nDROP DATABASE IF EXISTS made_by_a_linter",
         "/* why /* and how */ */ drop/**/database if exists made_by_a_linter;",
         "SELECT 1; -- next\nDROP DATABASE IF EXISTS made_by_a_linter", "-- why\nALTER SYSTEM RESET work_mem"],
    )  # fmt: skip
    def test_one_that_changes_what_all_databases_share_is_stopped(self, tried, atomic, sql):
        source = f"{atomic}operations = [migrations.RunSQL({sql!r}, migrations.RunSQL.noop)]"
        assert lint(tried, source, ADD_PAID) == [{"W401"}, {"W401"}]
        loader = loader_of(source)
        with tried.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        fill(tried, loader, sorted(loader.graph.nodes))
        with tried.cursor() as cursor:
            cursor.execute("SELECT FROM pg_roles WHERE rolname = 'made_by_a_linter'")
            assert cursor.rowcount == 0
            cursor.execute("SELECT FROM pg_database WHERE datname = 'template1' AND datacl::text LIKE '%pg_monitor%'")
            assert cursor.rowcount == 0

    def test_one_that_forgets_using_writes_to_the_scratch_database(self, tried):
        source = """
def write(apps, schema_editor):
    apps.get_model("shop", "Customer").objects.create(name="Sari")
operations = [migrations.RunPython(write, migrations.RunPython.noop)]
"""
        trace(tried, source)
        assert connection.settings_dict["NAME"] == tried.settings_dict["NAME"]
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM shop_customer")
            assert cursor.fetchall() == [("Sari",)]

    def test_one_that_fails_in_the_middle_without_a_transaction_leaves_what_it_did(self, tried):
        half = """
atomic = False
operations = [migrations.RunSQL("ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS half int", ""),
    migrations.RunSQL("SELECT 1/0", "")]
"""
        rest = """operations = [migrations.RunSQL("UPDATE shop_order SET half = 1 WHERE id = 1", "")]"""
        assert lint(tried, half, rest) == [{"E301"}, {"W401"}]


@pytest.mark.parametrize(
    ("sql", "judged"),
    [
        ("DROP TABLE IF EXISTS absent", False),
        ("DROP VIEW IF EXISTS absent CASCADE", False),
        ("ALTER TABLE IF EXISTS absent ADD COLUMN paid boolean", False),
        ("DROP TABLE IF EXISTS made; CREATE TABLE made (id bigint PRIMARY KEY)", True),
        ("ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS absent", True),
        ("DROP INDEX IF EXISTS absent", True),
    ],
)
def test_what_is_not_there_to_be_dropped_was_not_judged(tried, sql, judged):
    (broken,) = lint(tried, f'operations = [migrations.RunSQL("{sql}", migrations.RunSQL.noop)]')
    assert ("W401" not in broken) is judged
