"""Does the end of a run say what stays, what is gone and what to do next, however the run ends?"""

import signal
import subprocess
import sys
import time

import pytest

from gotong_royong.zero_downtime.models import Run, Step
from tests.databases import look
from tests.zero_downtime.running.test_recall import sql
from tests.zero_downtime.shop import finish
from tests.zero_downtime.test_stages import applied

pytestmark = pytest.mark.once

FAILS = 'migrations.RunSQL("SELECT 1 / 0", "")'
WAITS = 'migrations.RunSQL("SELECT pg_sleep(60)", "")'
BACK_FAILS = 'migrations.RunSQL("SELECT 1", "SELECT 1 / 0")'
RECEIVER = """
from django.core.management import call_command
from django.db.models.signals import post_migrate, pre_migrate

def refuse(app_config, plan, **how):
    if app_config.label == "shop" and any(backwards for _, backwards in plan) is {backwards}:
        {does}

{signal}.connect(refuse)
"""


@pytest.fixture
def migrated(shop):
    shop.write("0002_a", 'column("items", "a")')
    return shop


def kept(database):
    """Return all that the ledger says of errors."""
    errors = [*Run.objects.using(database.alias).values_list("error", flat=True)]
    return " ".join([*errors, *Step.objects.using(database.alias).values_list("error", flat=True)])


@pytest.mark.parametrize("options", [[], ["--auto-rollback"]])
@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_ctrl_c_says_what_stays(migrated, scratch, options, attributes):
    migrated.write("0003_waits", f'column("items", "b"), {WAITS}', attributes)
    run = migrated.start("migrate", *options)
    ours = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(60)%'"
    while not sql(scratch, ours):
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    done = finish(run)
    assert done.code == 130
    left = (
        "It is not atomic, so what it did before that stays; migrate again goes on from there."
        if attributes
        else "Nothing of it is left."
    )
    assert done.err == (
        f"\nStopped by Ctrl-C or SIGTERM in shop.0003_waits. {left}\n"
        "What run 1 (migrate) applied before that stays (2 steps): rollback takes it back.\n"
    )
    assert applied(scratch) == ["0001", "0002"]


def test_a_way_back_that_fails_says_what_it_took_back(migrated, scratch):
    migrated.write("0003_b", BACK_FAILS)
    migrated.write("0004_c", 'column("items", "c")')
    migrated.succeed("migrate")
    said = migrated.fail("migrate", "shop", "zero")
    assert "shop.0003_b failed" in said
    assert said.endswith(
        "What run 2 (migrate) took back before that is no longer applied (1 step): migrate applies it again.\n"
    )
    assert applied(scratch) == ["0001", "0002", "0003"]


def test_what_is_half_taken_back_is_not_passed_over(migrated, scratch):
    migrated.write("0003_b", f'{BACK_FAILS}, column("items", "b")', "atomic = False")
    migrated.succeed("migrate")
    migrated.fail("rollback", "--steps", "1", "--yes")
    half = "half taken back by run 2, which failed: rollback takes back the rest"
    assert f"shop.0003_b is {half}." in migrated.fail("migrate")
    assert half in migrated.succeed("showmigrations")
    assert half in migrated.succeed("migrate", "--plan")


def test_what_is_half_done_is_not_hidden_by_a_record(migrated, scratch):
    migrated.write("0003_b", f'column("items", "b"), {FAILS}', "atomic = False")
    migrated.fail("migrate")
    before = look(scratch)
    said = migrated.fail("migrate", "--fake")
    assert said.startswith("HalfDone: shop.0003_b is half done by run 1, which failed: migrate goes on after operation")
    assert applied(scratch) == ["0001", "0002"]
    migrated.write("0003_b", 'column("items", "b")', "atomic = False")
    migrated.succeed("migrate")
    migrated.succeed("rollback", "--steps", "1", "--yes")
    assert look(scratch) != before
    assert applied(scratch) == ["0001", "0002"]


@pytest.mark.parametrize("signal", ["pre_migrate", "post_migrate"])
def test_a_receiver_that_fails_is_named(migrated, scratch, signal):
    migrated.models(RECEIVER.format(signal=signal, backwards=False, does='raise ValueError("the moon")'))
    afterwards = {
        "pre_migrate": "Nothing was migrated. Correct the receiver and try again.",
        "post_migrate": "The migrations are done and recorded. Correct the receiver and run migrate, which calls it "
        "again.",
    }
    assert migrated.fail("migrate") == (
        f"ReceiverFailed: shop.models.refuse, a receiver of {signal}, failed for the app shop: ValueError: the moon. "
        f"{afterwards[signal]}\n"
    )
    if signal == "post_migrate":
        assert applied(scratch) == ["0001", "0002"]


@pytest.mark.parametrize("back", [["rollback", "--yes", "--steps", "1"], ["migrate", "shop", "0001", "--no-input"]])
def test_after_one_that_fails_on_the_way_back_nobody_is_told_to_migrate(migrated, scratch, back):
    migrated.succeed("migrate")
    migrated.models(RECEIVER.format(signal="post_migrate", backwards=True, does='raise ValueError("the moon")'))
    done = migrated.run(*back)
    assert done.code == 1
    assert done.err == (
        "ReceiverFailed: shop.models.refuse, a receiver of post_migrate, failed for the app shop: ValueError: the "
        "moon. The rollback is done and recorded. Correct the receiver: the next rollback or migrate calls it again, "
        "but migrate applies again what was taken back.\n"
    )
    assert ("Took back 1 migration in run 2 (rollback)." in done.out) is (back[0] == "rollback")
    assert applied(scratch) == ["0001"]


CALLS = """
from django.core.management import call_command
from django.db.models.signals import post_migrate

def refuse(app_config, plan, **how):
    if plan and app_config.label == "shop":
        call_command("migrate", verbosity=0)
    if not plan and app_config.label == "shop":
        raise ValueError("the moon.")

post_migrate.connect(refuse)
"""


def test_one_that_fails_in_a_command_that_a_receiver_calls_is_named_once(migrated):
    migrated.models(CALLS)
    assert migrated.fail("migrate") == (
        "ReceiverFailed: shop.models.refuse, a receiver of post_migrate, failed for the app shop: ValueError: the "
        "moon. The migrations are done and recorded. Correct the receiver and run migrate, which calls it again.\n"
    )


@pytest.mark.parametrize("signal", ["pre_migrate", "post_migrate"])
@pytest.mark.parametrize("does", ['raise ValueError("the moon")', 'call_command("migrate")'])
def test_a_receiver_stops_no_automatic_rollback(migrated, scratch, signal, does):
    migrated.succeed("migrate", "shop", "0001")
    before = look(scratch)
    migrated.models(RECEIVER.format(signal=signal, backwards=True, does=does))
    migrated.write("0003_fails", FAILS)
    said = migrated.fail("migrate", "--auto-rollback")
    assert "Rolled back: shop.0002_a. The database may not be as it was before run 2 (migrate):" in said
    assert f"shop.models.refuse, a receiver of {signal}, failed for the app shop: " in said
    assert ("ValueError: the moon" if "moon" in does else "It would wait for itself.") in said
    assert look(scratch) == before
    assert "the moon" not in kept(scratch)


@pytest.mark.parametrize("how", ["closed", "nobody reads"])
@pytest.mark.parametrize("arguments", [[], ["--format", "json"], ["--verbosity", "2"]])
def test_a_run_goes_on_though_nobody_reads_what_it_says(migrated, scratch, how, arguments):
    migrated.write("0003_says", "migrations.RunPython(lambda apps, editor: print('said', flush=True))")
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "django", "migrate", *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        run = subprocess.Popen(command, env=migrated.environment, cwd=migrated.folder, text=True, **pipes)
    else:
        run = migrated.start("migrate", *arguments)
        run.stdout.close()
    error = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), error.removeprefix("said\n")) == (0, "")  # what a migration prints is no JSON
    assert Run.objects.using(scratch.alias).get().status == "succeeded"


@pytest.mark.parametrize("auto", ["--auto-rollback", "--no-auto-rollback"])
def test_the_ledger_keeps_no_row_that_an_exception_quotes(migrated, scratch, auto):
    path = migrated.migrations / "0003_rows.py"
    migrated.write("0003_rows", "migrations.RunPython(bad)")
    path.write_text(path.read_text().replace("\nclass", "\ndef bad(apps, editor):\n    raise ValueError(ROW)\n\nclass"))
    path.write_text(f"ROW = 'alice' + '@example.org'\n{path.read_text()}")
    assert "ValueError: alice@example.org" in migrated.fail("migrate", auto)
    assert "alice" not in kept(scratch)
    assert "shop.0003_rows failed in operation 1 of 1: ValueError" in kept(scratch)
    unique = "ALTER TABLE items ADD UNIQUE (a); INSERT INTO items VALUES (1, 77)"
    migrated.write("0003_rows", f'migrations.RunSQL("{unique}", migrations.RunSQL.noop)')
    migrated.write("0004_rows", 'migrations.RunSQL("INSERT INTO items VALUES (2, 77)")')
    assert "(77)" in migrated.fail("migrate", auto)
    assert "77" not in kept(scratch)
    assert 'duplicate key value violates unique constraint "items_a_key"' in kept(scratch)


@pytest.mark.parametrize("attributes", ["", "atomic = False"])
def test_a_foreign_key_that_went_along_is_named_in_the_plan_and_on_the_way_back(shop, scratch, attributes):
    shop.write("0001_items", 'migrations.CreateModel("Thing", [("id", models.AutoField(primary_key=True))])')
    shop.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute("CREATE TABLE other (thing int CONSTRAINT of_thing REFERENCES shop_thing)")
    shop.write("0002_gone", 'migrations.DeleteModel("Thing")', attributes)
    plan = shop.succeed("migrate", "--plan")
    assert "-- Also drops, unless a step above drops it: constraint of_thing on table other." in plan
    shop.succeed("migrate")
    said = shop.succeed("rollback", "--yes")
    assert "Took back 1 migration in run 3 (rollback)." in said
    assert "constraint of_thing on table other, which went along with what 'Delete model Thing' of" in said
    assert "the data of table shop_thing are gone" in said
    shop.succeed("migrate")
    assert "went along" not in shop.succeed("rollback", "--yes")
