"""What can a linted migration do to others? It is ended within its limit, reported, and the others are judged."""

import json
import re
import time

import psutil
import psycopg
import pytest
from django.db import connection

from tests.conftest import _database
from tests.test_migrations import conninfo, url
from tests.zero_downtime.linter.test_scratch import until
from tests.zero_downtime.shop import Shop

pytestmark = pytest.mark.once

LIMITS = """
from django.apps import AppConfig
class Shop(AppConfig):
    name = "shop"
    def ready(self):
        from gotong_royong.zero_downtime.linter import apart
        from gotong_royong.zero_downtime.management.commands import lintmigrations
        lintmigrations.LIMIT, apart.GRACE = 1.0, 1.0
"""
PYTHON = """
import collections, os, signal, sys, threading, time
from django.db import migrations
{before}
def work(apps, schema_editor):
    {code}
class Migration(migrations.Migration):
    dependencies = [("shop", "0000_items")]
    operations = [{operation}]
"""
NOT_ALLOWED, STOPPED, LATE, ENDED = (
    r"permission denied|must be owner|linter changes nothing outside",
    r"It was stopped after 1 s, ",
    r"It was stopped after 1 s, and did not let itself\.",
    r"It ended the process that ran it \((exit status 0|exit status 1|SIGKILL)\)\.",
)

# What it does, which rules it breaks for that, and what is said.
OF_ALL = {"E309", "W409"}  # nothing depends on them, and their names have no time
SQL = {
    "drops_a_database": ("-- tidy up\nDROP DATABASE {victim}", {"W401"}, NOT_ALLOWED),
    "drops_it_in_a_block": ("DO $$ BEGIN EXECUTE 'DROP OWNED BY keeper'; END $$", {"W401"}, NOT_ALLOWED),
    "alters_the_system": ("/* x */ ALTER SYSTEM SET work_mem = '1MB'", {"W401"}, NOT_ALLOWED),
    "makes_a_role": ("DO $$ BEGIN EXECUTE 'CREATE ROLE made_by_a_migration SUPERUSER'; END $$", {"W401"}, NOT_ALLOWED),
    "ends_a_session": ("SELECT pg_terminate_backend({pid})", set(), ""),
    "ends_all_sessions": (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper'", {"W401"}, NOT_ALLOWED),
    "runs_a_program": ("COPY (SELECT 1) TO PROGRAM 'touch {file}'", {"W401"}, NOT_ALLOWED),
    "reads_a_file": ("SELECT pg_read_file('postgresql.conf')", {"W401"}, NOT_ALLOWED),
    "subscribes": ("CREATE SUBSCRIPTION s CONNECTION 'dbname={victim}' PUBLICATION p", {"W401"}, NOT_ALLOWED),
    "waits": ("SELECT pg_sleep(100)", {"W401"}, STOPPED),
    "waits_without_a_limit": ("SET statement_timeout = 0; SELECT pg_sleep(100)", {"W401"}, STOPPED),
}  # fmt: skip
CODE = {
    "exits": ("sys.exit(0)", {"E301"}, "SystemExit: 0"),
    "ends_the_process": ("os._exit(0)", {"E301"}, ENDED),
    "kills_the_process": ("os.kill(os.getpid(), signal.SIGKILL)", {"E301"}, ENDED),
    "closes_all": ("os.closerange(3, 4096)", {"E301"}, ENDED),
    "loops": ("[None for _ in iter(int, 1)]", {"W401"}, STOPPED),
    "loops_in_c": ("collections.deque(iter(int, 1), maxlen=0)", {"W401"}, LATE),
    "loops_deaf": ("signal.signal(signal.SIGALRM, signal.SIG_IGN); [None for _ in iter(int, 1)]", {"W401"}, LATE),
    "loops_on": ("stubborn()", {"W401"}, LATE),
    "makes_a_copy": ("os.fork()", set(), ""),
    "leaves_a_copy": ("os.fork() or (note(), time.sleep(600))", set(), ""),
    "leaves_a_thread": ("threading.Thread(target=time.sleep, args=[600]).start()", set(), ""),
    "writes_much": ("[os.write(to, b'x' * 2**20) for _ in range(2000) for to in (1, 2)]", set(), ""),
    "prints_much": ("[print('x' * 2**20, file=to) for _ in range(50) for to in (sys.stdout, sys.stderr)]", set(), ""),
    "reads_the_terminal": ("input()", {"E301"}, "EOFError"),
    "fails_in_a_circle": ("circle()", {"E301"}, "ValueError: round"),
}
BEFORE = """
def note():
    with open({file!r}, "w") as file:
        file.write(str(os.getpid()))
def stubborn():
    while True:
        try:
            time.sleep(0.1)
        except BaseException:
            pass
def circle():
    one, other = ValueError("round"), ValueError("and round")
    one.__cause__, other.__cause__ = other, one
    raise one
"""


@pytest.fixture(scope="module")
def victim(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), _database() as database:
        yield database


OF_THE_SERVER = """
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'made_by_a_migration'), pg_postmaster_start_time(),
        (SELECT array_agg((name, setting)::text) FROM pg_file_settings)
"""


def of_the_server():
    """What migrations shall not change on the configured server."""
    with connection.cursor() as cursor:
        cursor.execute(OF_THE_SERVER)
        return cursor.fetchone()


@pytest.fixture(scope="module")
def linted(victim, django_db_blocker, tmp_path_factory):
    """The outcome of one lint of all of them, after which a session of before still watches."""
    folder = tmp_path_factory.mktemp("hostile")
    shop, file = Shop(folder, url(victim)), folder / "noted"
    (folder / "shop" / "apps.py").write_text(LIMITS)
    shop.write("0000_items", 'migrations.RunSQL("CREATE TABLE items (id int PRIMARY KEY)", "DROP TABLE items")')
    with django_db_blocker.unblock(), psycopg.connect(**conninfo(victim)) as session:
        values = {"victim": victim.alias, "pid": session.info.backend_pid, "file": file}
        for number, (name, (sql, *_)) in enumerate(SQL.items(), 100):
            operation = f"migrations.RunSQL({sql.format(**values)!r}, migrations.RunSQL.noop)"
            text = PYTHON.format(code="pass", before="", operation=operation)
            (shop.migrations / f"0{number}_{name}.py").write_text(text)
        for number, (name, (code, *_)) in enumerate(CODE.items(), 500):
            operation = "migrations.RunPython(work, migrations.RunPython.noop)"
            text = PYTHON.format(code=code, before=BEFORE.format(file=str(file)), operation=operation)
            (shop.migrations / f"0{number}_{name}.py").write_text(text)
        shop.write("0999_index", 'migrations.RunSQL("CREATE INDEX i ON items (id)", "DROP INDEX i")')
        before, started = of_the_server(), time.monotonic()
        process = shop.start("lintmigrations", "shop", "--format=json")
        out, err = process.communicate(timeout=140)
        seconds = time.monotonic() - started
        assert session.execute("SELECT 1").fetchone() == (1,)
        assert of_the_server() == before
    found = [json.loads(line) for line in out.splitlines()]
    return {"found": found, "err": err, "code": process.returncode, "file": file, "seconds": seconds}


@pytest.mark.parametrize("name", [*SQL, *CODE])
def test_one_is_reported(linted, name):
    _, rules, said = {**SQL, **CODE}[name]
    found = [one for one in linted["found"] if one["migration"].endswith(f"_{name}")]
    ids = {one["id"].removeprefix("zero_downtime.") for one in found} - OF_ALL
    assert ids == rules, linted["err"]
    assert all(re.search(said, one["message"]) for one in found if one["id"][-4:] in rules), found


def test_the_others_are_judged_and_the_exit_status_is_not_theirs(linted):
    assert {one["id"] for one in linted["found"] if one["migration"] == "0999_index"} >= {"zero_downtime.E103"}
    assert linted["code"] == 1
    assert re.match(rf"ZeroDowntimeError: {len(SQL) + len(CODE) + 2} migrations, \d+ errors, ", linted["err"])


@pytest.mark.parametrize("code", ["sys.exit(0)", "os._exit(0)"])
def test_one_that_ends_the_process_when_it_is_loaded_is_named(shop, code):
    shop.write("0002_exits", "")
    path = shop.migrations / "0002_exits.py"
    path.write_text(f"import os, sys\n{code}\n{path.read_text()}")
    said = shop.fail("lintmigrations")
    named = {
        "sys.exit(0)": "CommandError: Migration shop.0002_exits cannot be loaded: SystemExit: 0, in line 2 of ",
        "os._exit(0)": "ZeroDowntimeError: While loading shop.migrations.0002_exits: it ended the process that ran it ",
    }
    assert said.startswith(named[code])


def test_one_that_the_linter_fails_on_costs_its_verdict_and_no_other(shop):
    shop.write("0002_broken", "type('Odd', (migrations.RunSQL,), {'reversible': property(lambda self: 1 / 0)})('')")
    shop.write("0003_index", 'migrations.RunSQL("CREATE INDEX i ON items (id)", "DROP INDEX i")')
    done = shop.run("lintmigrations", "shop", "--format=json")
    assert done.out, done
    found = {(one["migration"][:4], one["id"][-4:]): one["message"] for one in map(json.loads, done.out.splitlines())}
    assert "The linter fails on it: " in found["0002", "W401"], done
    assert ("0003", "E103") in found


@pytest.mark.parametrize("killed", ["parent", "child", "server"])
def test_a_kill_leaves_nothing_and_ends_it_with_an_error(shop, tmp_path, monkeypatch, killed):
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}")
    sleep = f"open({str(tmp_path / 'at')!r}, 'w').write('here') and time.sleep(5)"
    shop.write("0002_waits", f"migrations.RunPython(lambda *_: {sleep}, migrations.RunPython.noop)")
    process = shop.start("lintmigrations", "shop")
    until((tmp_path / "at").exists)
    parent = psutil.Process(process.pid)
    began = parent.children(recursive=True)
    (server,) = [one for one in parent.children() if one.name() == "postgres"]
    (child,) = [one for one in parent.children() if one.cmdline() == parent.cmdline()]
    {"parent": parent, "child": child, "server": server}[killed].kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if killed == "child":
        assert "It ended the process that ran it (SIGKILL)." in out
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in began))
    (tmp_path / "at").unlink()
    assert "2 migrations, 0 errors" in shop.succeed("lintmigrations", "shop")


def test_nothing_of_it_is_left(linted):
    process = int(linted["file"].read_text())
    assert not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE
