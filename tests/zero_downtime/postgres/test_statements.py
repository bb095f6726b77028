"""Is each statement taken for what PostgreSQL takes it for, whatever stands around its words?"""

import pytest
from psycopg import sql

from gotong_royong.zero_downtime.postgres.changes import columns_set
from gotong_royong.zero_downtime.postgres.statements import (
    Build,
    Object,
    Statement,
    has_condition,
    is_patient,
    only_adds,
    pieces,
    split,
    text_of,
)

pytestmark = pytest.mark.once

CASE = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;"


@pytest.mark.parametrize(
    ("string", "statements"),
    [
        ("", [""]),
        (";; \n", []),
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1; SELECT 2;", ["SELECT 1;", " SELECT 2;"]),
        ("-- one; two\nSELECT 1; -- three; four", ["-- one; two\nSELECT 1;"]),
        ("/* a /* b; */ it's; */ SELECT 1; SELECT 2", ["/* a /* b; */ it's; */ SELECT 1;", " SELECT 2"]),
        ("/* never /* closed; */ SELECT 1; SELECT 2", []),
        ("SELECT 'a;b'; SELECT 'c''; d'; e", ["SELECT 'a;b';", " SELECT 'c''; d';", " e"]),
        (r"SELECT '\'; SELECT 2", [r"SELECT '\';", " SELECT 2"]),
        (r"SELECT E'\'; '; SELECT 2", [r"SELECT E'\'; ';", " SELECT 2"]),
        ("SELECT 1 # 2; SELECT 3", ["SELECT 1 # 2;", " SELECT 3"]),
        ("SELECT 1 +--;\n2; SELECT 3", ["SELECT 1 +--;\n2;", " SELECT 3"]),
        ('SELECT "a;""b"; SELECT U&"c;"; d', ['SELECT "a;""b";', ' SELECT U&"c;";', " d"]),
        ("DO $$ BEGIN; END $$; SELECT $тег$;$$;$тег$; x", ["DO $$ BEGIN; END $$;", " SELECT $тег$;$$;$тег$;", " x"]),
        ("SELECT a$1$b; SELECT $1; x", ["SELECT a$1$b;", " SELECT $1;", " x"]),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); x", None),
        (f"{CASE} x", None),
        (";;x;;y;;", ["x;", "y;"]),
        ("SELECT 'not closed; SELECT 2", ["SELECT 'not closed;", " SELECT 2"]),
    ],
)
def test_a_string_is_split_as_psql_splits_it(string, statements):
    expected = [string[:-2], " x"] if statements is None else statements
    assert [one.text for one in split(string)] == expected


PATIENT = [
    "CREATE INDEX CONCURRENTLY i ON t (a)",
    "create unique\tindex\n concurrently if not exists i on t (a);",
    "-- why\nCREATE INDEX CONCURRENTLY i ON t (a)",
    "/* why /* nested */ ; */ CREATE /* UNIQUE */ INDEX/**/CONCURRENTLY i ON t (a)",
    "CREATE INDEX CONCURRENTLY ON t (a)",
    "DROP INDEX CONCURRENTLY IF EXISTS i",
    "REINDEX INDEX CONCURRENTLY i",
    "REINDEX (VERBOSE) TABLE CONCURRENTLY t",
    "REINDEX (CONCURRENTLY, VERBOSE) TABLE t",
    "REINDEX (VERBOSE, CONCURRENTLY on) TABLE t",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
    "ALTER TABLE t VALIDATE CONSTRAINT c",
    'ALTER TABLE IF EXISTS ONLY public."T" VALIDATE CONSTRAINT "c, d", VALIDATE CONSTRAINT e ;',
    "ALTER TABLE t DETACH PARTITION s.p CONCURRENTLY",
]
IMPATIENT = [
    "",
    "CREATE INDEX i ON t (a)",
    'CREATE INDEX "CONCURRENTLY" ON t (a)',
    "CREATE INDEX i ON t (a) -- CONCURRENTLY",
    "SELECT 'CREATE INDEX CONCURRENTLY i ON t (a)'",
    "$$CREATE INDEX CONCURRENTLY i ON t (a)$$",
    "REINDEX (CONCURRENTLY off) TABLE t",
    "REINDEX (CONCURRENTLY false, VERBOSE) TABLE t",
    "REINDEX TABLE t",
    "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID, VALIDATE CONSTRAINT c",
    "ALTER TABLE t VALIDATE CONSTRAINT c, ADD COLUMN b int",
    "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID; ALTER TABLE t VALIDATE CONSTRAINT c",
    "CREATE INDEX CONCURRENTLY i ON t (a); DROP TABLE t",
    "ALTER TABLE t DETACH PARTITION p",
    "ALTER TABLE t RENAME TO concurrently",
    "UPDATE t SET validate = 'constraint'",
]


@pytest.mark.parametrize(
    ("string", "patient"), [(one, True) for one in PATIENT] + [(one, False) for one in IMPATIENT], ids=str
)
def test_what_may_wait(string, patient):
    assert is_patient(string) is patient


@pytest.mark.parametrize(
    ("string", "build"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", ("i", "t")),
        (
            "-- x\ncreate unique index concurrently if not exists Idx on only public.T (a)",
            ("idx", "public.t"),
        ),
        ('CREATE INDEX CONCURRENTLY "I ON ""x" ON "S.1" . "T" (a)', ('"I ON ""x"', '"S.1"."T"')),
        ("CREATE INDEX CONCURRENTLY Über ON t (a)", ("Über", "t")),
        ("CREATE INDEX CONCURRENTLY ON t (a)", None),
        ("CREATE INDEX i ON t (a)", None),
        ("DROP INDEX CONCURRENTLY i", None),
        ("REINDEX INDEX CONCURRENTLY i", None),
        ("SELECT 'CREATE INDEX CONCURRENTLY i ON t (a)'", None),
    ],
)
def test_what_is_built(string, build):
    assert Statement(string).build == (build and Build(*build))


@pytest.mark.parametrize(
    ("string", "name"),
    [
        ("/* x */ REINDEX (VERBOSE) INDEX CONCURRENTLY S.i", "s.i"),
        ('reindex (concurrently) table "T"', '"T"'),
        ("REINDEX INDEX i", ""),
        ("REINDEX SCHEMA CONCURRENTLY s", ""),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", ""),
        ("CREATE INDEX ON t (a)", ""),
        ("create unique index concurrently on only T (a)", "t"),
    ],
)
def test_where_postgresql_chooses_the_name_of_what_is_built(string, name):
    assert Statement(string).builds_unnamed_on == name


@pytest.mark.parametrize(
    ("string", "controls", "ends"),
    [
        ("BEGIN", True, False),
        ("/* x */ start transaction isolation level serializable;", True, False),
        ("-- x\nCOMMIT", True, True),
        ("end;", True, True),
        ("ABORT", True, True),
        ("ROLLBACK", True, True),
        ("ROLLBACK AND CHAIN", True, True),
        ("ROLLBACK TO a", True, False),
        ("ROLLBACK WORK TO SAVEPOINT a", True, False),
        ("SAVEPOINT a", True, False),
        ("RELEASE a", True, False),
        ("SELECT 'COMMIT'", False, False),
        ('"COMMIT"', False, False),
        ("DO $$ BEGIN COMMIT; END $$", False, False),
        ("", False, False),
    ],
)
def test_what_controls_a_transaction(string, controls, ends):
    statement = Statement(string)
    assert (statement.controls_transaction, statement.ends_transaction) == (controls, ends)


ADD, VALIDATE = "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID;", "ALTER TABLE t VALIDATE CONSTRAINT c;"


@pytest.mark.parametrize(
    "cut",
    [
        [ADD, VALIDATE],
        ["CREATE INDEX CONCURRENTLY i ON t (a);", "\n CREATE INDEX CONCURRENTLY j ON t (b)"],
        ["INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)"],
        ["BEGIN; SELECT 1; COMMIT;", " BEGIN; SELECT 2; END;", " SELECT 3; SELECT 4"],
        [f"/* one */ BEGIN;{ADD}{VALIDATE}COMMIT;", VALIDATE],
        [f"SELECT 1; BEGIN;{ADD} ROLLBACK TO a; {VALIDATE}"],
        [f"SET LOCAL work_mem = '1GB';{VALIDATE}"],
        [f"LOCK TABLE t;{VALIDATE}"],
        ["SET work_mem = '1GB';", VALIDATE],
        ["DO $$ BEGIN COMMIT; END $$; SELECT 'VALIDATE'"],
    ],
)
def test_a_string_is_cut_where_that_changes_no_transaction_but_for_what_may_wait(cut):
    assert pieces("".join(cut)) == cut


@pytest.mark.parametrize(
    ("string", "depends"),
    [
        ("CREATE TABLE IF NOT EXISTS s.T (a text)", True),
        ("CREATE TEMP TABLE IF NOT EXISTS t ()", True),
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY t (a)", True),
        ("-- x\ndrop schema if exists a cascade", True),
        ("ALTER TABLE IF EXISTS t DROP a", True),
        ("ALTER TABLE t ADD a int, ADD COLUMN IF NOT EXISTS b int", True),
        ("SELECT 1; DROP TABLE IF EXISTS t", True),
        ("SELECT 1 WHERE NOT EXISTS (SELECT)", False),
        ("CREATE TABLE t (a text DEFAULT 'IF EXISTS')", False),
        ('CREATE TABLE "IF EXISTS" ()', False),
    ],
)
def test_whether_it_depends_on_what_is_there(string, depends):
    assert has_condition(string) is depends


@pytest.mark.parametrize(
    ("string", "changes"),
    [
        ("CREATE TABLE s.T (a text)", [("table", "", "s.t", True)]),
        ("DROP VIEW a, B", [("view", "", "a", False), ("view", "", "b", False)]),
        (
            'ALTER TABLE IF EXISTS ONLY t ADD a int, ADD COLUMN IF NOT EXISTS "B" int, DROP CONSTRAINT IF EXISTS c',
            [("column", "t", "a", True), ("column", "t", '"B"', True), ("constraint", "t", "c", False)],
        ),
    ],
)
def test_which_of_its_objects_it_makes(string, changes):
    assert Statement(string).changes == [(Object(*object), is_made) for *object, is_made in changes]


@pytest.mark.parametrize(
    ("string", "columns"),
    [
        ("UPDATE t SET a = 1, b = (SELECT c, d = 2 FROM e WHERE f = 3) WHERE g = 4", {("t", "a"), ("t", "b")}),
        ('-- x\nupdate /* y */ only public . "T" as u set "A b" = \'SET c = 1\'', {("T", "A b")}),
        ("UPDATE t u SET a = u.b FROM v", {("t", "a")}),
        ("UPDATE t SET (a, b) = (1, 2)", set()),
        ("INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 1", set()),
        ("SELECT 'UPDATE t SET a = 1'", set()),
    ],
)
def test_what_an_update_sets(string, columns):
    assert set(columns_set(Statement(string))) == columns


@pytest.mark.parametrize(
    ("string", "is_one"),
    [
        ("DROP DATABASE a", True),
        ("-- x\ndrop\ndatabase if exists a", True),
        ("/* /* */ */ ALTER/**/SYSTEM SET a = 1", True),
        ("CREATE TABLESPACE a", True),
        ("DROP TABLE database", False),
        ("DROP -- x\n TABLE a", False),
        ("COMMENT ON DATABASE a IS 'DROP DATABASE'", False),
        ("SELECT 'DROP DATABASE a'", False),
    ],
)
def test_what_is_about_more_than_a_database(string, is_one):
    assert Statement(string).is_about_more_than_a_database is is_one


def test_whatever_a_cursor_takes_has_a_text(scratch):
    with scratch.cursor():
        build = sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} (a)").format(sql.Identifier('a "b'), sql.Identifier("T"))
        assert Statement(text_of(build, scratch)).build == Build('"a ""b"', '"T"')
        assert text_of(b"SELECT 'a'", scratch) == text_of("SELECT 'a'", scratch)


@pytest.mark.parametrize(
    ("string", "adds"),
    [
        ("INSERT INTO t VALUES (1); COMMENT ON TABLE t IS 'DELETE'", True),
        ("ALTER TABLE t VALIDATE CONSTRAINT c", True),
        ("CREATE VIEW v AS SELECT 1", True),
        ("CREATE OR REPLACE VIEW v AS SELECT 1", False),
        ("-- INSERT\nDELETE FROM t", False),
        ("INSERT INTO t VALUES (1); TRUNCATE t", False),
        ("DO $$ BEGIN DELETE FROM t; END $$", False),
        ("ALTER TABLE t ALTER c TYPE int", False),
    ],
)
def test_which_may_have_taken_something_away(string, adds):
    assert bool(only_adds(string)) is adds
