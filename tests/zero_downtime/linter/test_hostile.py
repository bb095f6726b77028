"""What can a linted migration do to others? It is ended within its limit, reported, and the others are judged."""

import json
import os
import re
import signal
import time

import psutil
import psycopg
import pytest
from django.db import connection

from gotong_royong.zero_downtime.linter.scratch import PREFIX
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
    "writes_a_file": ("SELECT lo_export(lo_create(0), '{file}')", {"W401"}, NOT_ALLOWED),
    "links_to_a_server": ("CREATE EXTENSION dblink", {"W401"}, NOT_ALLOWED + "|is not available"),
    "links_tables": ("CREATE EXTENSION postgres_fdw", {"W401"}, NOT_ALLOWED + "|is not available"),
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
    "prints_much": ("[print('x' * 2**20, file=to) for _ in range(10) for to in (sys.stdout, sys.stderr)]", set(), ""),
    "reads_the_terminal": ("input()", {"E301"}, "EOFError"),
    "fails_in_a_circle": ("circle()", {"E301"}, "ValueError: round"),
    "fails_too_deep": ("deep = lambda: deep(); deep()", {"E301"}, "RecursionError"),
    "eats_memory": ("eaten = [bytes(2**30) for _ in iter(int, 1)]", {"E301"}, "MemoryError"),
    "kills_its_parent": ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(1)", {"E301"}, ENDED),
    "kills_its_group": ("os.killpg(0, signal.SIGKILL)", {"E301"}, ENDED),
    "leaves_a_daemon": ("os.fork() or (os.setsid(), os.fork() and os._exit(0), note(), time.sleep(600))", set(), ""),
    "says_that_it_ended": (
        """[os.write(to, b'["end"]\\n0 errors\\n') for to in (0, 1, 2)]; print('["end"]')""",
        set(),
        "",
    ),
    "writes_into_all_files": ("everywhere()", {"E301"}, r"It wrote where the linter writes its reports"),
    "reaches_the_server": (
        "__import__('psycopg').connect(os.environ['DATABASE_URL'])",
        {"W401"},
        "lets no migration reach the network",
    ),
    "ends_it_at_the_end": ("__import__('atexit').register(os._exit, 0)", set(), ""),
    "hooks_errors": ("sys.excepthook = sys.unraisablehook = lambda *_: os._exit(0)", set(), ""),
    "goes_elsewhere": ("os.chdir('/')", set(), ""),
}
BEFORE = """
def note():
    with open({file!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
def everywhere():
    for to in range(3, 100):
        try:
            os.write(to, b'["end"]\\n')
        except OSError:
            pass
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
    found = [one for one in linted["found"] if one["migration"] == "0999_index"]
    assert {one["id"] for one in found} >= {"zero_downtime.E103"}
    assert {one["path"] for one in found} == {"shop/migrations/0999_index.py"}
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


@pytest.mark.parametrize("killed", ["parent", "keeper", "child", "server"])
def test_a_kill_leaves_nothing_and_ends_it_with_an_error(shop, tmp_path, no_other_servers, killed):
    sleep = f"open({str(tmp_path / 'at')!r}, 'w').write('here') and time.sleep(5)"
    shop.write("0002_waits", f"migrations.RunPython(lambda *_: {sleep}, migrations.RunPython.noop)")
    process = shop.start("lintmigrations", "shop")
    until((tmp_path / "at").exists)
    parent = psutil.Process(process.pid)
    began = parent.children(recursive=True)
    (server,) = [one for one in parent.children() if one.name() == "postgres"]
    (keeper,) = [one for one in parent.children() if one.cmdline() == parent.cmdline()]
    (child,) = keeper.children()
    {"parent": parent, "keeper": keeper, "child": child, "server": server}[killed].kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if killed in {"keeper", "child"}:
        assert "It ended the process that ran it (SIGKILL)." in out
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in began))
    (tmp_path / "at").unlink()
    assert "2 migrations, 0 errors" in shop.succeed("lintmigrations", "shop")


def ended(process):
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


DEAF = """migrations.RunPython(lambda *_: (
    os.fork() or (os.setsid(), os.fork() and os._exit(0), note(), time.sleep(600)),
    note(), collections.deque(iter(int, 1), maxlen=0),
), migrations.RunPython.noop)"""


@pytest.mark.parametrize("adopt", [True, False], ids=["Linux", "elsewhere"])
def test_code_that_hears_nothing_ends_when_the_parent_is_killed(shop, tmp_path, no_other_servers, adopt):
    """Where no process can adopt others, what has left the group of its own will stays."""
    limits = LIMITS.replace("1.0, 1.0", "60.0, 1.0") + ("" if adopt else "        apart.ADOPT = -1\n")
    (shop.folder / "shop" / "apps.py").write_text(limits)
    text = PYTHON.format(before=BEFORE.format(file=str(tmp_path / "at")), code="pass", operation=DEAF)
    (shop.migrations / "0002_deaf.py").write_text(text.replace("0000_items", "0001_items"))
    process = shop.start("lintmigrations", "shop")
    until(lambda: (tmp_path / "at").exists() and len((tmp_path / "at").read_text().split()) == 2)
    noted = {int(one) for one in (tmp_path / "at").read_text().split()}
    parent = psutil.Process(process.pid)
    until(lambda: len(noted & {one.pid for one in parent.children(recursive=True)}) == (2 if adopt else 1))
    began = {one.pid for one in parent.children(recursive=True)}
    killed = time.monotonic()
    parent.kill()
    until(lambda: all(map(ended, began)))
    assert time.monotonic() - killed < 10  # of the 60 s that the operation has
    process.communicate(timeout=60)
    for one in noted - began:
        os.kill(one, signal.SIGKILL)


def test_a_killed_lint_is_in_no_other_s_way(shop, tmp_path, no_other_servers):
    wait = f"open({str(tmp_path / 'at')!r}, 'a').write('here ') and time.sleep(2)"
    shop.write("0002_waits", f"migrations.RunPython(lambda *_: {wait}, migrations.RunPython.noop)")
    one, other = (shop.start("lintmigrations", "shop") for _ in range(2))
    until(lambda: (tmp_path / "at").exists() and len((tmp_path / "at").read_text().split()) == 2)
    began = [process.pid for lint in (one, other) for process in psutil.Process(lint.pid).children(recursive=True)]
    psutil.Process(one.pid).kill()
    one.communicate(timeout=60)
    out, err = other.communicate(timeout=60)
    assert other.returncode == 0, err
    assert "2 migrations, 0 errors" in out
    until(lambda: all(map(ended, began)))


def test_what_has_its_verdict_is_not_tried_again(shop, tmp_path):
    """Two that end the process cost no second look at the others, nor a second wait for one that never ends."""
    (shop.folder / "shop" / "apps.py").write_text(LIMITS)
    note = f"lambda *_: open({str(tmp_path / 'tried')!r}, 'a').write('x')"
    shop.write("0002_is_tried", f"migrations.RunPython({note}, {note})")
    late = f"open({str(tmp_path / 'late')!r}, 'a').write('x') and time.sleep(60)"
    shop.write("0003_late", f"migrations.RunPython(lambda *_: {late}, migrations.RunPython.noop)")
    once = {name: len(text) for name, text in noted_by(shop, tmp_path).items()}
    for name in ("0004_exits", "0005_exits"):
        shop.write(name, "migrations.RunPython(lambda *_: __import__('os')._exit(0), migrations.RunPython.noop)")
    again = {name: len(text) for name, text in noted_by(shop, tmp_path).items()}
    # Each of the two others that begin runs it up once, without a way down and without rows.
    assert again == {"tried": once["tried"] + 2, "late": once["late"]}


def noted_by(shop, folder):
    files = [folder / "tried", folder / "late"]
    for file in files:
        file.unlink(missing_ok=True)
    shop.run("lintmigrations", "shop")
    return {file.name: file.read_text() for file in files}


def left(database):
    """Return the scratch databases and roles on the configured server that no other test makes at this moment."""
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %(prefix)s) "
            "UNION SELECT rolname FROM pg_roles WHERE starts_with(rolname, %(prefix)s)",
            {"prefix": PREFIX},
        )
        return {name for (name,) in cursor.fetchall() if not psutil.pid_exists(int(name.split("_")[3]))}


def test_on_a_server_that_the_setting_names_nothing_is_left_either(shop, scratch):
    shop.settings('ZERO_DOWNTIME_SCRATCH_DATABASE = "default"\n')
    shop.write("0002_exits", "migrations.RunPython(lambda *_: __import__('os')._exit(0), migrations.RunPython.noop)")
    before = left(scratch)
    done = shop.run("lintmigrations", "shop")
    assert "It ended the process that ran it (exit status 0)." in done.out
    assert done.code == 1
    assert left(scratch) <= before


def test_nothing_of_it_is_left(linted):
    noted = [int(line) for line in linted["file"].read_text().split()]
    assert len(noted) >= 2, "a copy and a daemon"
    assert all(map(ended, noted))
