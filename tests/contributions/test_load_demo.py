"""The command: all rows of the demo or none, never among the data of others, and an account to look around with."""

import itertools
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from multiprocessing import active_children
from types import SimpleNamespace
from urllib.parse import quote
from uuid import uuid4

import pytest
from django.contrib.auth import authenticate
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, connection
from django.db.migrations.recorder import MigrationRecorder

from accounts.models import Profile, Skill, User
from contributions.demo import ahead, loading
from contributions.demo.tables import COLUMNS
from contributions.management.commands import load_demo
from gotong_royong.settings import BASE_DIR
from tests.contributions.demos import CATALOG, ask, counts, digests, load

pytestmark = pytest.mark.once


@pytest.mark.django_db(transaction=True)
def test_a_second_run_says_that_the_demo_is_there():
    load()
    before = digests()
    assert load() == "The demo is already there: 20 people, seed 1.\n"
    assert digests() == before


@pytest.mark.parametrize("other", [["--users", "21"], ["--users", "20", "--seed", "2"]])
@pytest.mark.django_db(transaction=True)
def test_another_demo_is_left_alone(other):
    load()
    before = digests()
    with pytest.raises(CommandError, match=r"holds another demo, made by `load_demo --users 20 --seed 1`") as refusal:
        load(*other)
    assert refusal.value.returncode == 1
    assert digests() == before


@pytest.mark.django_db(transaction=True)
def test_data_of_others_are_left_alone():
    Skill.objects.create(name="Patience")
    with pytest.raises(CommandError, match=r"The table skills already holds rows\. load_demo fills empty tables only"):
        load()
    assert counts() == dict.fromkeys(COLUMNS, 0) | {"skills": 1}


@pytest.mark.django_db(transaction=True)
def test_somebody_who_writes_at_the_last_moment_is_seen(monkeypatch):
    """Between the first look and the lock on the tables."""
    monkeypatch.setattr(loading, "PATIENCE", "INSERT INTO skills (name) VALUES ('Patience')")
    with pytest.raises(CommandError, match=r"The table skills already holds rows"):
        load()
    assert not any(counts().values())


@pytest.mark.django_db(transaction=True)
def test_a_superuser_may_be_there_first():
    User.objects.create_superuser("sari", "sari@example.org", "secret")
    load()
    assert counts()["users"] == 21


@pytest.mark.django_db(transaction=True)
def test_constraints_and_indexes_are_put_back():
    before = ask(CATALOG)
    load()
    assert ask(CATALOG) == before
    assert ask("SELECT FROM pg_index WHERE NOT indisvalid") == []
    with pytest.raises(IntegrityError, match="profiles_user_id"):
        Profile.objects.create(user_id=uuid4())


@pytest.mark.django_db(transaction=True)
def test_the_planner_knows_the_sizes():
    load()
    assert ask("SELECT reltuples FROM pg_class WHERE relname = 'contributions'") == [(200,)]


@pytest.fixture
def broken_copy(monkeypatch, small_neighborhoods):
    """Let COPY do its work for two neighborhoods and raise what the test puts into the list after that."""
    errors = []
    real, left = loading._copy, 2 * len(COLUMNS)

    def copy(cursor, table, rows):
        nonlocal left
        if not left:
            assert ask("SELECT count(*) FROM users") == [(20,)]
            raise errors[0]
        left -= 1
        real(cursor, table, rows)

    monkeypatch.setattr(loading, "_copy", copy)
    return errors


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (KeyboardInterrupt(), "Stopped by Ctrl-C: nothing was loaded.", 130),
        (DatabaseError("the disk\nis full"), "Nothing was loaded into the database: the disk is full.", 1),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_a_load_that_stops_leaves_everything_as_it_was(error, sentence, code, broken_copy):
    before = ask(CATALOG)
    broken_copy.append(error)
    with pytest.raises(CommandError) as stopped:
        load("--users", "60")
    assert (str(stopped.value), stopped.value.returncode) == (sentence, code)
    assert not any(counts().values())
    assert ask(CATALOG) == before


@pytest.mark.django_db(transaction=True)
def test_the_process_that_draws_the_rows_may_be_killed(monkeypatch):
    monkeypatch.setattr(ahead, "WORTH_A_PROCESS", 2)
    monkeypatch.setattr(loading, "_copy", lambda *arguments: [child.kill() for child in active_children()])
    with pytest.raises(CommandError, match=r"Nothing was loaded into the database: the process .* ended too early\."):
        load("--users", "500")
    assert not any(counts().values())


@pytest.mark.django_db(transaction=True)
def test_an_error_of_copy_itself_is_one_sentence(monkeypatch):
    monkeypatch.setitem(COLUMNS, "tasks", COLUMNS["tasks"].replace("title", "heading"))
    with pytest.raises(CommandError, match=r'\ANothing was loaded into the database: column "heading" of relation'):
        load()
    assert not any(counts().values())


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_after_the_end_tells_that_all_is_there(monkeypatch):
    def load_and_stop(*arguments):
        loading.load(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(load_demo, "load", load_and_stop)
    with pytest.raises(CommandError, match=r"\AStopped by Ctrl-C: all of the demo is loaded\.\Z") as stopped:
        load()
    assert stopped.value.returncode == 130
    assert counts()["users"] == 20


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_in_a_terminal():
    """The signal itself, while the command works in a process of its own."""
    before, settings = ask(CATALOG), connection.settings_dict
    login = ":".join(quote(part, safe="") for part in (settings["USER"], settings["PASSWORD"]) if part)
    host = f"{quote(settings['HOST'], safe='')}:{settings['PORT'] or 5432}"
    environment = os.environ | {"DEBUG": "1", "DATABASE_URL": f"postgresql://{login}@{host}/{settings['NAME']}"}
    process = subprocess.Popen(
        [sys.executable, "manage.py", "load_demo", "--users", "20000"],
        cwd=BASE_DIR,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        works = (
            "SELECT FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'COPY evidence%' AND pid <> pg_backend_pid()"
        )
        deadline = time.monotonic() + 60
        while not ask(works):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that the command has started
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stdout, stderr) == (130, "", "CommandError: Stopped by Ctrl-C: nothing was loaded.\n")
    assert not any(counts().values())
    assert ask(CATALOG) == before


@pytest.mark.django_db(transaction=True)
def test_tables_in_use_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", "SET LOCAL lock_timeout = '50ms'")
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM tasks")
        with pytest.raises(CommandError, match=r"Nothing was loaded .*: other sessions are using its tables"):
            load()
    finally:
        other.close()
    assert not any(counts().values())


@pytest.mark.django_db
def test_a_database_that_is_not_migrated():
    leaf = max(name for app, name in MigrationRecorder(connection).applied_migrations() if app == "contributions")
    MigrationRecorder(connection).record_unapplied("contributions", leaf)
    with pytest.raises(CommandError, match=r"lacks the newest migrations\. Run: manage\.py migrate"):
        load()
    assert not any(counts().values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: --users"),
        (["--users", "0"], "0 is too few: people vouch for each other, so at least 2 are needed."),
        (["--users", "-5"], "-5 is too few"),
        (["--users", "1"], "1 is too few"),
        (["--users", "many"], "'many' is not a whole number."),
        (["--users", "1e3"], "'1e3' is not a whole number."),
        (["--users", "9" * 5_000], "is not a whole number."),
        (["--users", "20", "--seed", "lucky"], "'lucky' is not a whole number."),
        (["--users", "20", "--seed", "9" * 300], "it has too many digits: 18 at most."),
    ],
)
def test_bad_numbers(arguments, sentence):
    with pytest.raises(CommandError) as refusal:
        call_command("load_demo", *arguments)
    assert sentence in str(refusal.value)


@pytest.mark.django_db(transaction=True)
def test_the_admin_can_look_around(settings):
    settings.DEBUG = True
    assert load("--users", "20", "--admin").endswith("Log in as admin with the password gotong-royong\n")
    for name in ("admin", "admin@example.org"):
        account = authenticate(username=name, password="gotong-royong")
        assert account.is_superuser
        assert account.is_staff
    before = digests()
    again = load("--users", "20", "--admin")
    assert again.splitlines()[0] == "The demo is already there: 20 people, seed 1."
    assert again.splitlines()[1] == "Log in as admin with the password gotong-royong"
    assert digests() == before


@pytest.mark.django_db(transaction=True)
def test_the_admin_comes_to_a_demo_that_is_there(settings):
    load()
    settings.DEBUG = True
    load("--users", "20", "--admin")
    assert authenticate(username="admin", password="gotong-royong").is_superuser


@pytest.mark.django_db(transaction=True)
def test_no_admin_without_debug():
    with pytest.raises(CommandError, match=r"needs DEBUG=1\. Make an account of your own: manage\.py createsuperuser"):
        load("--users", "20", "--admin")
    assert not any(counts().values())


@pytest.mark.parametrize(("username", "email"), [("admin", "me@example.org"), ("me", "admin@example.org")])
@pytest.mark.django_db(transaction=True)
def test_an_admin_who_was_there_before_stays_as_it_is(username, email, settings):
    settings.DEBUG = True
    User.objects.create_superuser(username, email, "my own secret")
    output = load("--users", "20", "--admin")
    assert f"The account {username} ({email}) was there before and stays as it is." in output
    assert output.endswith(f"manage.py changepassword {username}\n")
    assert "gotong-royong" not in output
    assert authenticate(username=username, password="my own secret")
    assert counts()["users"] == 21


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.mark.django_db(transaction=True)
def test_a_terminal_shows_one_live_line(small_neighborhoods):
    output = load("--users", "25", stdout=Terminal())
    shown, summary = output.rsplit(load_demo.WIPE, 1)
    assert "\n" not in shown
    assert f"{load_demo.WIPE}8 of 25 people, " in shown
    assert f"{load_demo.WIPE}index or foreign key 2 of " in shown
    assert len(summary.splitlines()) == len(COLUMNS) + 1


@pytest.mark.django_db(transaction=True)
def test_elsewhere_there_are_few_plain_lines(small_neighborhoods, monkeypatch):
    """A clock that goes on by a second whenever it is asked: the more seconds passed, the fewer the lines."""
    monkeypatch.setattr(load_demo, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    lines = load("--users", "500").splitlines()[: -len(COLUMNS) - 1]
    assert lines[0].startswith("   6 s: 60 of 500 people, ")
    assert 5 < len(lines) < 20


@pytest.mark.django_db(transaction=True)
def test_it_can_be_quiet():
    assert load(stdout=Terminal(), verbosity=0) == ""
    assert load(stdout=Terminal(), verbosity=0) == ""
    assert counts()["users"] == 20
