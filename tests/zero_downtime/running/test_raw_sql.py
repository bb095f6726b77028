"""Is SQL guarded by what it does, however it is written, and wherever in a migration it comes from?"""

import threading
from contextlib import nullcontext

import psycopg
import pytest

from tests.databases import conninfo
from tests.zero_downtime.load import TICK, clock, holding, load

READ = "SELECT count(*) FROM items"
WRITE = "LOCK TABLE items IN ROW EXCLUSIVE MODE"
ROWS = "INSERT INTO items SELECT i, i FROM generate_series(1, 100) i"
TABLE = f"""
    migrations.RunSQL("CREATE TABLE items (id int PRIMARY KEY, size int)"), migrations.RunSQL({ROWS!r}),
    migrations.RunSQL("CREATE SCHEMA s; CREATE TABLE s.\\"Big Items\\" (id int)")
"""
NOT_ATOMIC = "atomic = False"
BUILD = "CREATE INDEX CONCURRENTLY by_size ON items (size)"
BUILD_UNIQUE = BUILD.replace("INDEX", "UNIQUE INDEX")
HERE = "datname = current_database()"
BUILDING = f"SELECT FROM pg_stat_progress_create_index WHERE {HERE} AND phase LIKE 'waiting%'"
WAITING = f"SELECT FROM pg_stat_activity WHERE {HERE} AND application_name = 'migrate' AND wait_event_type = 'Lock'"


@pytest.fixture
def items(shop, scratch):
    shop.write("0001_items", TABLE)
    shop.succeed("migrate")
    with psycopg.connect(**conninfo(scratch), autocommit=True) as session:
        yield session


def sql(*strings):
    return f"migrations.RunSQL({list(strings) if len(strings) > 1 else strings[0]!r}, migrations.RunSQL.noop)"


def python(statement, *arguments):
    """Write an operation in whose code a cursor executes an expression."""
    execute = f"editor.connection.cursor().execute({', '.join([statement, *arguments])})"
    return f"migrations.RunPython(lambda apps, editor: {execute}, migrations.RunPython.noop)"


def indexes(session):
    return session.execute(
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE NOT indisprimary "
        "AND indrelid::regclass::text IN ('items', 'others', 's.\"Big Items\"') ORDER BY 1"
    ).fetchall()


def leave_invalid(session, build, table="items"):
    """Let a concurrent build fail."""
    session.execute(f"INSERT INTO {table} (id) VALUES (-1), (-2)")
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute(build.replace(")", ", (1 / (id + 1)))"))
    session.execute(f"DELETE FROM {table} WHERE id < 0")


def until(session, question):
    """Wait until the question has an answer, for half a minute at most."""
    ticking = clock()
    until = ticking.time() + 30
    while not session.execute(question).rowcount:
        assert ticking.time() < until, question
        ticking.wait(threading.Event(), TICK)


class TestInvalidIndex:
    @pytest.mark.parametrize(
        "operation",
        [
            sql(BUILD),
            sql(BUILD.replace("by_size", "IF NOT EXISTS by_size")),
            sql(f"-- so that reports are fast\n{BUILD}"),
            sql(BUILD.replace("CREATE ", "/* why /* and how */ ; */ CREATE\n\t").replace("by_", "IF NOT EXISTS by_")),
            sql(BUILD.lower().replace("by_size", 'if not exists "by_size"').replace(" items", " only public . ITEMS")),
            sql(f"{BUILD}; CREATE INDEX CONCURRENTLY other ON items (id)"),
            sql("SELECT 1", BUILD),
            sql(f"; {BUILD}"),
            sql(f"/* why */; {BUILD}"),
            sql(f"-- why\n;;{BUILD};;"),
            python(repr(BUILD)),
            python(repr(f"/* {ROWS} */ {BUILD}"), "[]"),
            python(repr(BUILD.encode())),
            python(repr(f"{BUILD} WHERE id > %s"), "[0]"),
            python(f"__import__('psycopg').sql.SQL({BUILD.replace('by_size', '{}')!r}).format("
                   "__import__('psycopg').sql.Identifier('by_size'))"),
        ],
    )  # fmt: skip
    def test_it_is_dropped_before_the_index_is_built_again(self, shop, items, operation):
        leave_invalid(items, BUILD)
        assert indexes(items) == [("by_size", False)]
        shop.write("0002_index", operation, NOT_ATOMIC)
        shop.succeed("migrate")
        assert ("by_size", True) in indexes(items)
        assert all(valid for _, valid in indexes(items))

    def test_so_it_is_under_a_quoted_name_in_another_schema(self, shop, items):
        build = 'CREATE INDEX CONCURRENTLY "by ""id"", ON" ON s."Big Items" (id)'
        leave_invalid(items, build, 's."Big Items"')
        shop.write("0002_index", sql(f"-- why\n{build}"), NOT_ATOMIC)
        shop.succeed("migrate")
        assert indexes(items) == [('by "id", ON', True)]

    @pytest.mark.parametrize(
        "statement",
        [
            "-- why\nREINDEX INDEX CONCURRENTLY by_size",
            "reindex (verbose, concurrently) table public.Items",
            "-- why\nCREATE INDEX CONCURRENTLY ON items (size)",
        ],
    )
    def test_what_failed_under_a_name_that_postgresql_chose_is_dropped(self, shop, items, scratch, statement):
        items.execute(f"{BUILD} WHERE id > 0")
        items.execute("CREATE INDEX other_idx ON items (size, id)")
        items.execute("SET statement_timeout = '0.3s'")
        with holding(conninfo(scratch), WRITE, 60), pytest.raises(psycopg.errors.QueryCanceled):
            items.execute(statement)
        items.execute("RESET statement_timeout")
        before = indexes(items)
        assert not all(valid for _, valid in before)
        shop.write("0002_index", sql(statement), NOT_ATOMIC)
        shop.succeed("migrate")
        made = [("items_size_idx1", True)] if "CREATE" in statement else []
        assert indexes(items) == [("by_size", True), *made, ("other_idx", True)]

    def test_one_of_another_table_stays(self, shop, items):
        items.execute("CREATE TABLE others (id int, size int)")
        leave_invalid(items, BUILD.replace("items", "others"), "others")
        shop.write("0002_index", sql(BUILD), NOT_ATOMIC)
        assert "already exists" in shop.fail("migrate")
        assert indexes(items) == [("by_size", False)]

    def test_a_valid_one_stays(self, shop, items):
        items.execute(BUILD)
        oid = items.execute("SELECT 'by_size'::regclass::oid").fetchone()
        shop.write("0002_index", sql(BUILD.replace("by_size", "IF NOT EXISTS by_size")), NOT_ATOMIC)
        shop.succeed("migrate")
        assert items.execute("SELECT 'by_size'::regclass::oid").fetchone() == oid

    @pytest.mark.parametrize("succeeds", [True, False])
    def test_what_another_session_is_building_is_waited_for(self, shop, items, scratch, succeeds):
        """If it is built, it is there; if that build fails, it is built again."""
        shop.write("0002_index", sql(BUILD.replace("by_size", "IF NOT EXISTS by_size")), NOT_ATOMIC)
        pids = []

        def build():
            with psycopg.connect(**conninfo(scratch), autocommit=True) as builder:
                pids.append(builder.info.backend_pid)
                with nullcontext() if succeeds else pytest.raises(psycopg.errors.QueryCanceled):
                    builder.execute(BUILD)

        builder = threading.Thread(target=build)
        with holding(conninfo(scratch), WRITE, 60) as over:
            builder.start()
            until(items, BUILDING)
            oid = items.execute("SELECT 'by_size'::regclass::oid").fetchone()
            process = shop.start("migrate")
            until(items, WAITING)
            assert indexes(items) == [("by_size", False)]
            if not succeeds:
                items.execute("SELECT pg_cancel_backend(%s)", pids)
                builder.join()
            over.set()
        builder.join()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        assert indexes(items) == [("by_size", True)]
        assert (items.execute("SELECT 'by_size'::regclass::oid").fetchone() == oid) is succeeds

    @pytest.mark.parametrize(("build", "name"), [(BUILD, "by_size"), (BUILD.replace("by_size", ""), "items_size_idx1")])
    def test_none_is_left_by_a_try_that_ended_in_a_deadlock(self, shop, items, scratch, build, name):
        shop.write("0002_index", sql(f"-- why\n{build}"), NOT_ATOMIC)
        with psycopg.connect(**conninfo(scratch)) as other:
            other.execute(f"SET deadlock_timeout = '30s'; {WRITE}")
            process = shop.start("migrate")
            until(items, BUILDING)
            other.execute("LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        until(items, f"SELECT FROM pg_stat_database WHERE {HERE} AND deadlocks = 1")
        assert indexes(items) == [(name, True)]


ADD = "ALTER TABLE items ADD CONSTRAINT positive CHECK (size > 0) NOT VALID"
VALIDATE = "ALTER TABLE items VALIDATE CONSTRAINT positive"
CONSTRAINT = "SELECT convalidated FROM pg_constraint WHERE conname = 'positive'"


class TestSeveralStatements:
    @pytest.mark.parametrize(
        ("operation", "attributes"),
        [
            (sql(f"{ADD}; {VALIDATE}"), NOT_ATOMIC),
            (sql(f"/* alter */ {ADD.lower()};\n-- validate;\n{VALIDATE.lower()};"), NOT_ATOMIC),
            (sql(f"{ADD}, VALIDATE CONSTRAINT positive"), NOT_ATOMIC),
            (sql(f"BEGIN; {ADD}; COMMIT; {VALIDATE}"), NOT_ATOMIC),
            (python(repr(f"{ADD}; {VALIDATE}")), NOT_ATOMIC),
            (python(repr(f"{ADD.replace('0', '%s')}; {VALIDATE}"), "[0]"), NOT_ATOMIC),
            (sql(f"-- why\n{ADD}; {VALIDATE}"), ""),
            (sql(VALIDATE.replace("VALIDATE", f"{ADD.removeprefix('ALTER TABLE items ')}, VALIDATE")), ""),
        ],
    )
    def test_they_wait_no_longer_than_the_most_dangerous_of_them(self, shop, items, scratch, operation, attributes):
        shop.write("0002_constraint", operation, attributes)
        with load(conninfo(scratch), READ) as victims, holding(conninfo(scratch), READ, 1.5, from_first_wait=True):
            shop.succeed("migrate")
        assert victims[0].longest < 0.8  # against 1.0 s, where the watchdog ends it
        assert items.execute(CONSTRAINT).fetchall() == [(True,)]

    def test_one_that_validates_after_others_in_a_transaction_is_as_impatient_as_they_are(self, shop, items, scratch):
        items.execute(f"CREATE TABLE others (id int); {ADD.replace('items', 'others').replace('size', 'id')}")
        shop.write("0002_constraint", f'column("items", "more"), {sql(VALIDATE.replace("items", "others"))}')
        hold = "LOCK TABLE others IN SHARE UPDATE EXCLUSIVE MODE"
        with load(conninfo(scratch), READ) as victims, holding(conninfo(scratch), hold, 1.5, from_first_wait=True):
            shop.succeed("migrate")
        assert victims[0].longest < 0.8
        assert items.execute(CONSTRAINT).fetchall() == [(True,)]

    def test_one_that_validates_alone_in_a_transaction_waits(self, shop, items, scratch):
        items.execute(ADD)
        shop.write("0002_constraint", sql(VALIDATE))
        hold = "LOCK TABLE items IN SHARE UPDATE EXCLUSIVE MODE"
        with holding(conninfo(scratch), hold, 0.5, from_first_wait=True):
            assert "Next in" not in shop.succeed("migrate")
        assert items.execute(CONSTRAINT).fetchall() == [(True,)]

    def test_without_one_that_may_wait_they_stay_one_transaction(self, shop, items):
        shop.write("0002_rows", sql("INSERT INTO items VALUES (-1); INSERT INTO items VALUES (1 / 0)"), NOT_ATOMIC)
        shop.fail("migrate")
        assert items.execute(READ).fetchone() == (100,)


class TestOwnTransaction:
    ALTER = "ALTER TABLE items ADD COLUMN more int"

    @pytest.mark.parametrize(
        "operation",
        [
            sql(f"BEGIN; {ALTER}; COMMIT"),
            sql(f"-- own\nstart transaction;\n/* ; */ {ALTER};\nEND;"),
            sql(f"BEGIN; INSERT INTO items VALUES (0); COMMIT; BEGIN; {ALTER}; COMMIT"),
            sql(f"INSERT INTO items VALUES (0); COMMIT; BEGIN; {ALTER}; COMMIT; SELECT 1"),
            python(repr(f"BEGIN; {ALTER}; COMMIT")),
            python(repr(f"BEGIN; INSERT INTO items SELECT %s WHERE 'a;' LIKE '%%;'; COMMIT; {ALTER}"), "[0]"),
        ],
    )
    def test_it_is_tried_again_in_a_new_transaction(self, shop, items, scratch, operation):
        shop.write("0002_column", operation, NOT_ATOMIC)
        with holding(conninfo(scratch), READ, 1.0, from_first_wait=True):
            assert "Next in" in shop.succeed("migrate")
        assert items.execute("SELECT count(*), count(more) FROM items WHERE id > 0").fetchone() == (100, 0)

    def test_one_that_fails_leaves_no_transaction(self, shop, items):
        shop.write("0002_column", f"{sql(f'BEGIN; {self.ALTER}; SELECT 1 / 0; COMMIT')}", NOT_ATOMIC)
        assert "division by zero" in shop.fail("migrate")
        shop.write("0002_column", sql(f"BEGIN; {self.ALTER}; COMMIT"), NOT_ATOMIC)
        shop.succeed("migrate")


@pytest.mark.parametrize("comment", ["-- until we DROP the old one\n", "/* DROP TABLE items; */ "])
def test_what_a_comment_says_is_not_done_and_needs_no_undoing(shop, items, comment):
    made = f'migrations.RunSQL({comment + "CREATE TABLE others (id int)"!r}, "DROP TABLE others")'
    shop.write("0002_others", f"{made}, {sql('SELECT 1 / 0')}", NOT_ATOMIC)
    assert "The database is as it was before" in shop.fail("migrate", "--auto-rollback")
    assert items.execute("SELECT to_regclass('others')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("refused", "reverse"),
    [
        ("-- no need to do this CONCURRENTLY\nCREATE TABLE items (id int)", "DROP TABLE items"),
        ("CREATE INDEX CONCURRENTLY by_size ON items (size)", "DROP INDEX by_size"),
        ("BEGIN; CREATE TABLE items (id int); COMMIT; SELECT 'VALIDATE'", "DROP TABLE items"),
        ("CREATE TABLE items (id int); CREATE INDEX CONCURRENTLY i ON items (id)", "DROP TABLE items"),
    ],
)
def test_what_was_refused_is_not_undone(shop, items, refused, reverse):
    items.execute(BUILD)
    shop.write("0002_items", f"migrations.RunSQL({refused!r}, {reverse!r})", NOT_ATOMIC)
    assert "already exists" in shop.fail("migrate", "--auto-rollback")
    assert items.execute(READ).fetchone() == (100,)
    assert indexes(items) == [("by_size", True)]


@pytest.mark.parametrize(
    ("several", "reverse"),
    [
        ("CREATE TABLE others (id int); COMMIT; SELECT 1 / 0", "DROP TABLE others"),
        ("CREATE TABLE others (id int); CREATE TABLE items (id int); ", "DROP TABLE others"),
        ("-- x\nCREATE UNIQUE INDEX CONCURRENTLY others ON items ((1 / (size - 1)))", "DROP INDEX others"),
    ],
)
def test_what_was_done_before_the_failure_is_undone(shop, items, several, reverse):
    shop.write("0002_items", f"migrations.RunSQL({several!r}, {reverse!r})", NOT_ATOMIC)
    said = shop.fail("migrate", "--auto-rollback")
    assert "The database is as it was before" in said
    assert items.execute("SELECT to_regclass('others')").fetchone() == (None,)
    assert items.execute(READ).fetchone() == (100,)


@pytest.mark.parametrize("attributes", ["", NOT_ATOMIC])
@pytest.mark.parametrize(
    ("conditional", "what"),
    [
        ("CREATE INDEX IF NOT EXISTS by_size ON items (id)", "index by_size"),
        ("CREATE TABLE IF NOT EXISTS items (other text)", "table items"),
        ("ALTER TABLE items ADD COLUMN IF NOT EXISTS size text", "column size on items"),
    ],
)
def test_what_is_left_alone_by_its_own_condition_is_said_at_once(shop, items, conditional, what, attributes):
    items.execute("CREATE INDEX by_size ON items (size)")
    shop.write("0002_again", sql(conditional), attributes)
    said = f"{what} existed already, so IF NOT EXISTS skipped it. Its definition was not compared."
    assert said in shop.succeed("migrate")
    items.execute("DROP TABLE items CASCADE; CREATE TABLE items (id int)")
    new = conditional.replace("by_size", "other").replace("size", "b").replace("items (o", "c (o")
    shop.write("0003_new", sql(new))
    assert "was not compared" not in shop.succeed("migrate")


@pytest.mark.parametrize("again", ["CREATE INDEX by_size ON items (id)", "ALTER TABLE items ADD COLUMN size int"])
@pytest.mark.parametrize("attributes", ["", NOT_ATOMIC])
def test_where_something_of_the_name_is_there_the_ways_out_are_said(shop, items, again, attributes):
    items.execute("CREATE INDEX by_size ON items (size)")
    shop.write("0002_again", sql(again), attributes)
    said = shop.fail("migrate")
    assert "Rename or drop the existing one, or change the migration, and migrate again." in said
    assert "migrate APP NAME --fake" in said
