"""Can an operator see and control a backfill, and is he told what does not go?"""

import io
import sys
import threading
import time
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.models import F, Q

from gotong_royong.zero_downtime.backfills import control, pool
from gotong_royong.zero_downtime.models import Backfill, whoami
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE

pytestmark = pytest.mark.once

Status = Backfill.Status


@pytest.fixture
def backfill(skills):
    def backfill(*arguments):
        output = io.StringIO()
        call_command("backfill", *arguments, database=skills.alias, stdout=output)
        return output.getvalue()

    return backfill


@pytest.fixture
def at_work(skills, declare, fill):
    """A backfill that somebody goes through, slowly, until the test has paused or canceled it."""
    fill(5_000)

    def process(self, batch):
        time.sleep(0.02)
        batch.update(description="")

    name = declare(process=process)

    def work():
        pool.run(name, skills.alias)
        connections[skills.alias].close()

    thread = threading.Thread(target=work)
    thread.start()
    while control.status(name, skills.alias)[1].rows == 0:
        time.sleep(0.02)
    yield name
    thread.join(10)
    assert not thread.is_alive()


def test_to_retry_one_without_a_where_changes_all_rows_again(backfill, declare, fill):
    fill(10)
    name = declare(where=None)
    backfill("run", name)
    assert f"has succeeded already. backfill retry {name} changes all rows again." in backfill("run", name)


def test_from_the_list_to_its_end(backfill, declare, fill, ask):
    fill(3_000)
    name = declare()
    assert f"{name}: not started\n" in backfill("list")
    ended = backfill("run", name, "--full-speed", "--workers", "2")
    assert ended.splitlines()[-1].startswith(f"{name}: succeeded, 3,000 rows in ")
    assert "verified: no row was left to do at " in backfill("show", name)
    assert f"has succeeded already. backfill retry {name} checks for new rows to do." in backfill("run", name)
    assert ask(UNDONE) == ask(TWICE) == 0
    ask("INSERT INTO skills (name) VALUES ('late')")
    assert "is pending again" in backfill("retry", name)
    assert " 1 row in " in backfill("run", name)
    assert ask(UNDONE) == 0


def test_pause_and_resume(skills, backfill, at_work, ask):
    assert backfill("pause", at_work) == f"{at_work} is paused.\n"
    assert f"  pause by {whoami()} at " in backfill("show", at_work)
    time.sleep(0.3)
    before, told = control.get_or_create(at_work, skills.alias), backfill("list")
    assert "held back" not in told
    left = ask("SELECT count(*) FROM skills WHERE description IS NULL")
    assert left > 0
    with pytest.raises(CommandError, match=r"is paused. backfill resume accounts.trial makes it pending"):
        backfill("run", at_work)
    with pytest.raises(CommandError, match=r"is paused and cannot become paused; it can become canceled, pending"):
        backfill("pause", at_work)
    time.sleep(0.2)
    assert backfill("list") == told
    assert ask("SELECT count(*) FROM skills WHERE description IS NULL") == left
    backfill("resume", at_work)
    assert [event.action for event in before.events.all()] == ["resume", "pause"]  # and not what was refused
    after = control.get_or_create(at_work, skills.alias)
    assert after.started_at - before.started_at > timedelta(seconds=0.4)  # its rate is that of the time it was at work
    assert "succeeded" in backfill("run", at_work)


def test_a_user_without_a_name_controls_too(backfill, skills, declare, monkeypatch):
    """As in a container that runs under any user id: getpass asks the environment, and then the system."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 1_000_660_000)
    row = control.get_or_create(declare(), skills.alias)
    backfill("pause", row.name)
    assert row.events.get().who.startswith("1000660000@")


def test_cancel(backfill, at_work):
    backfill("cancel", at_work)
    with pytest.raises(CommandError, match=r"is canceled, not paused"):
        backfill("resume", at_work)
    assert f"{at_work}: canceled, " in backfill("list")


@pytest.fixture
def slow(declare, fill):
    """A backfill whose batches last a while, and what is set once a worker is in one."""
    fill(3_000)
    inside = threading.Event()

    def process(self, batch):
        inside.set()
        time.sleep(0.3)
        batch.update(description="")

    name = declare(process=process)
    return name, inside


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("pause", r"is paused \(pause by ani at .* UTC\), so it was left before its end. backfill resume {} lets it"),
        ("cancel", r"is canceled \(cancel by ani at .* UTC\), so it was left .*. backfill retry {} lets it go on"),
    ],
)
def test_what_somebody_stops_meanwhile_is_no_success(backfill, slow, skills, way, told):
    """So that nothing goes on behind it in ``backfill run NAME && ...``."""
    name, inside = slow

    def pause_later():
        inside.wait(10)
        control.apply(control.get_or_create(name, skills.alias), way, "ani")
        connections[skills.alias].close()

    thread = threading.Thread(target=pause_later)
    thread.start()
    with pytest.raises(CommandError, match=f"^{name} {told.format(name)}"):
        backfill("run", name)
    thread.join()


def test_rows_set_aside_are_shown(backfill, declare, fill, ask):
    fill(100)
    ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%77')")
    name = declare()
    with pytest.raises(CommandError, match=r"1 row could not be changed: backfill show accounts.trial says why"):
        backfill("run", name)
    assert "set aside: row " in backfill("show", name)
    assert "failed, 100 rows in" in backfill("list") or "1 set aside" in backfill("list")


def test_what_the_code_no_longer_declares_is_still_listed(backfill, skills):
    Backfill.objects.using(skills.alias).create(name="accounts.of_old")
    assert "accounts.of_old: pending" in backfill("list")
    with pytest.raises(CommandError, match=r"No backfill accounts.of_old is declared in the code that runs here"):
        backfill("run", "accounts.of_old")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"where": Q(nonsense=1)}, "does not fit the models of the code that runs here: Cannot resolve .*nonsense"),
        ({"update": {"nonsense": 1}}, "does not fit the models .*: Skill has no field named 'nonsense'"),
        ({"update": {"name": F("nonsense")}}, "does not fit the models .*: Cannot resolve .*nonsense"),
        ({"where": Q(id="no-uuid")}, "does not fit the models .*: “no-uuid” is not a valid UUID. Correct its class"),
        ({"where": Q(name__in=1)}, "does not fit the models .*: 'int' object is not iterable. Correct its class"),
        ({"update": {"created_at": "yesterday"}}, "does not fit the models .*: “yesterday” value has an invalid"),
        (
            {"model": "accounts.Skil"},
            "does not fit the models .* 'Skil' model. Correct its class, or run it with the code",
        ),
        ({"model": "Skill"}, 'does not say whose rows it changes. Write model = "app.Model" in its class'),
        ({"model": None}, 'does not say whose rows it changes. Write model = "app.Model" in its class'),
        ({"update": {}}, "must have either update or process. Write one of them in its class"),
        ({"reverse": "accounts.nowhere"}, "names accounts.nowhere as its reverse, which is not declared"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused_and_stays_pending(backfill, skills, declare, body, told):
    name = declare(**body)
    with pytest.raises(CommandError, match=f"^{name} {told}"):
        backfill("run", name)
    assert control.status(name, skills.alias)[0].status in {"not started", Status.PENDING}


def test_one_that_failed_says_why_and_goes_on_once_that_is_mended(backfill, declare, fill, ask):
    fill(100)
    name = declare()
    ask("ALTER TABLE skills RENAME COLUMN description TO gone")
    failed = (
        r"^accounts.trial failed. ProgrammingError: column skills.description does not exist.*\n.*backfill retry acc"
    )
    for _ in range(2):
        with pytest.raises(CommandError, match=failed):
            backfill("run", name)
    ask("ALTER TABLE skills RENAME COLUMN gone TO description")
    backfill("retry", name)
    assert "succeeded, 100 rows" in backfill("run", name)


def test_a_process_that_ends_its_thread_is_no_success(backfill, declare, fill):
    fill(10)
    name = declare(process=lambda self, batch: sys.exit(3))
    with pytest.raises(SystemExit, match="3"):
        backfill("run", name)


def test_a_reverse_is_listed_as_what_it_is_until_it_runs(backfill, declare):
    name, reverse = declare(reverse="accounts.back"), declare("Back")
    assert f"{reverse}: the reverse of {name}\n" in backfill("list")
    backfill("run", reverse)
    assert f"{reverse}: succeeded" in backfill("list")


def test_a_look_starts_nothing(backfill, declare, skills):
    name, reverse = declare(reverse="accounts.back"), declare("Back")
    assert backfill("show", name) == f"{name}: not started\n"
    assert backfill("show", reverse) == f"{reverse}: the reverse of {name}\n"
    with pytest.raises(CommandError, match=r"--workers must be 1 or more"):
        backfill("run", name, "--workers", "0")
    assert name not in control.names(skills.alias)
    assert reverse not in control.names(skills.alias)


@pytest.mark.parametrize("way", control.ACTIONS)
def test_one_that_is_not_started_is_not_controlled(backfill, declare, skills, way):
    name = declare()
    with pytest.raises(CommandError, match=rf"^{name} is not started. backfill run {name} starts it.$"):
        backfill(way, name)
    assert name not in control.names(skills.alias)


@pytest.mark.parametrize("action", ["show", *control.ACTIONS])
def test_an_unknown_one_is_neither_shown_nor_controlled(backfill, action):
    with pytest.raises(CommandError, match=r"^No backfill accounts.nonsense is declared in the code that runs here"):
        backfill(action, "accounts.nonsense")


def test_one_that_is_taken_back_meanwhile_ends_with_a_sentence(backfill, slow, skills):
    name, inside = slow

    def forget():
        inside.wait(10)
        control.forget(name, skills.alias)  # once that batch is done
        connections[skills.alias].close()

    thread = threading.Thread(target=forget)
    thread.start()
    with pytest.raises(
        CommandError, match=rf"^Somebody has taken the backfill {name} back, so it has ended. backfill r"
    ):
        backfill("run", name)
    thread.join()


def test_before_the_first_migrate(scratch):
    with pytest.raises(CommandError, match=r"The tables of backfills are not in the database scratch_"):
        call_command("backfill", "run", "accounts.populate_markov_user_ids", database=scratch.alias)
