"""Does every command of the engine end a mistake in one sentence, in a project that has no manage.py of ours?"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_settings import UNREACHABLE
from tests.zero_downtime.shop import Shop

pytestmark = pytest.mark.once

CANNOT = (
    "CommandError: cannot connect to database gotong on 127.0.0.1:1 as maria. "
    "Check DATABASE_URL and that the server is running. The error: "
)


@pytest.fixture
def down(tmp_path):
    """A project whose server is not there."""
    project = Shop(tmp_path, UNREACHABLE)
    project.write("0001_items", "")
    return project


@pytest.mark.parametrize("command", ["migrate", "showmigrations", "rollback", "backfill list"])
def test_a_server_that_is_not_there(down, command):
    said = down.fail(*command.split())
    assert said.startswith(CANNOT)
    assert said.count("\n") == 1
    assert "s3cret" not in said


def test_the_database_that_is_meant_is_named(down):
    down.settings('DATABASES["other"] = {**DATABASES["default"], "NAME": "elsewhere"}\n')
    assert "cannot connect to database elsewhere on " in down.fail("migrate", "--database", "other")


def test_files_are_made_without_a_server_and_that_is_said_in_a_line(down):
    done = down.run("makemigrations", "--check", "--dry-run")
    assert (done.code, done.out) == (0, "No changes detected\n")
    assert done.err.startswith("Warning: Got an error checking a consistent migration history performed for ")
    assert done.err.count("\n") == 1


def test_a_traceback_for_who_asks_for_one(down):
    done = down.run("migrate", "--traceback")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "OperationalError" in done.err
    assert "s3cret" not in done.err


def test_a_broken_file(shop):
    (shop.migrations / "0002_size.py").write_text("import nowhere\n")
    for command in ("makemigrations", "migrate", "showmigrations", "rollback", "lintmigrations"):
        said = shop.fail(command)
        assert said.startswith(
            "CommandError: Migration shop.0002_size cannot be loaded: ModuleNotFoundError: No module"
        )
        assert said.count("\n") == 1


WRONG = {
    "migrate shob": "CommandError: No installed app with label 'shob'. Did you mean shop?",
    "migrate shob --plan": "CommandError: No installed app with label 'shob'. Did you mean shop?",
    "migrate x": "CommandError: No installed app with label 'x'.",
    "migrate gotong_royong.zero_downtime": (
        "CommandError: No installed app with label 'gotong_royong.zero_downtime'. Did you mean 'zero_downtime'?"
    ),
    "migrate shop 0009": (
        "CommandError: Cannot find a migration matching '0009' from app 'shop'. showmigrations shop lists them."
    ),
    "migrate shop 000": (
        "CommandError: More than one migration matches '000' in app 'shop'. Please be more specific. "
        "showmigrations shop lists them."
    ),
    "rollback --steps 0": "NotUndoable: Cannot take back 0 steps: 2 are applied.",
    "rollback --steps -1": "NotUndoable: Cannot take back -1 steps: 2 are applied.",
    "rollback --steps 3": "NotUndoable: Cannot take back 3 steps: 2 are applied.",
    "rollback --run 77": ("NotUndoable: There is no run 77. See showmigrations for the runs that applied something."),
    "rollback --to yesterday": (
        "NotUndoable: No migration has the timestamp yesterday. Write the 14 digits that a migration's name begins "
        "with, as in rollback --to 20260210120000; showmigrations lists them."
    ),
}


def test_what_is_not_there(migrated):
    for arguments, expected in WRONG.items():
        assert migrated.fail(*arguments.split()) == f"{expected}\n"


def test_what_a_rollback_is_given_is_no_number(migrated):
    done = migrated.run("rollback", "--steps", "two")
    assert done.code == 2
    assert "argument --steps: invalid int value: 'two'" in done.err


@pytest.fixture
def migrated(shop):
    shop.write("0002_size", 'column("items", "size")')
    shop.succeed("migrate")
    return shop


def test_a_setting_that_leads_nowhere(shop):
    shop.settings('ZERO_DOWNTIME_SCRATCH_DATABASE = "nowhere"\n')
    said = shop.fail("lintmigrations")
    assert said.startswith("CommandError: ZERO_DOWNTIME_SCRATCH_DATABASE is 'nowhere', which is neither an alias in ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["showmigrations", "lintmigrations --rules", "migrate --plan"])
@pytest.mark.parametrize("options", [[], ["-u"]])
def test_there_is_no_room_for_the_output(migrated, command, options):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, *options, "-m", "django", *command.split()],
            env=migrated.environment,
            cwd=migrated.folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    room = "CommandError: The device of its output is full, so it stopped.\n"
    assert (done.returncode, done.stderr) == ((0, "") if command == "migrate --plan" else (1, room))


def test_nobody_reads_the_output_to_its_end(shop):
    process = shop.start("lintmigrations", "--rules")
    process.stdout.close()
    assert process.stderr.read() == "CommandError: Nobody reads its output any more, so it stopped.\n"
    assert process.wait() == 1
    process.stderr.close()
