"""Does each mistake in a migration file end with one sentence that names it, whichever command meets it?"""

import pytest
from django.core.management import CommandError, call_command
from django.db.migrations.recorder import MigrationRecorder

from tests.databases import url
from tests.test_settings import UNREACHABLE, manage

pytestmark = pytest.mark.once

HEAD = "from django.db import migrations\n\n\nclass Migration(migrations.Migration):\n"
UNLOADABLE = "Migration sessions.new cannot be loaded: "

BROKEN = {
    "syntax": (
        f"{HEAD}    dependencies = [\n",
        f"{UNLOADABLE}SyntaxError: '[' was never closed, in line 5 of FILE. Correct it",
    ),
    "unreadable": ("\0", f"{UNLOADABLE}SyntaxError: source code string cannot contain null bytes. Correct it"),
    "import": (
        f"import nowhere\n{HEAD}    pass\n",
        f"{UNLOADABLE}ModuleNotFoundError: No module named 'nowhere', in line 1 of FILE. Correct it",
    ),
    "attribute": (
        f"{HEAD}    operations = [migrations.AddFeild()]\n",
        f"{UNLOADABLE}AttributeError: module 'django.db.migrations' has no attribute 'AddFeild', in line 5 of FILE. ",
    ),
    "no class": ("import os\n", "Migration new in app sessions has no Migration class. Write one"),
    "no such migration": (
        f"{HEAD}    dependencies = [('tasks', '2026')]\n",
        "Migration sessions.new depends on tasks.2026, which does not exist. Correct its dependencies",
    ),
    "no such app": (
        f"{HEAD}    dependencies = [('nowhere', '__first__')]\n",
        "Migration sessions.new has dependencies that cannot be followed: Dependency on unknown app: nowhere. Correct",
    ),
    "no pair": (
        f"{HEAD}    dependencies = [5]\n",
        "Migration sessions.new has dependencies that cannot be followed: 'int' object is not subscriptable. Correct",
    ),
    "circle": (
        f"{HEAD}    dependencies = [('sessions', 'old')]\n",
        "These migrations need one another in a circle: sessions.",
    ),
    "misfit": (
        f"{HEAD}    operations = [migrations.RemoveField('session', 'nothing')]\n",
        "Migration sessions.new does not fit what comes before it: KeyError: ('sessions', 'session'), at the operation "
        "'Remove field nothing from session'. Correct",
    ),
}


@pytest.fixture
def run(tmp_path):
    """Write the migrations of the app sessions anew and run manage.py, until that says one sentence."""

    def one_sentence(*command, address, **files):
        (tmp_path / "broken").mkdir()
        for name, text in {"__init__": "", **files}.items():
            (tmp_path / "broken" / f"{name}.py").write_text(text)
        (tmp_path / "trial.py").write_text(
            "from gotong_royong.settings import *\nMIGRATION_MODULES = {'sessions': 'broken'}\n"
        )
        trial = {"DJANGO_SETTINGS_MODULE": "trial", "PYTHONPATH": str(tmp_path)}
        code, _, err = manage(*command, DEBUG="1", DATABASE_URL=address, **trial)
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith("CommandError: ")
        return err.removeprefix("CommandError: ").replace(str(tmp_path / "broken" / "new.py"), "FILE")

    return one_sentence


@pytest.mark.parametrize("mistake", BROKEN)
def test_what_is_wrong_is_said(run, scratch, mistake):
    text, expected = BROKEN[mistake]
    files = {"old": f"{HEAD}    dependencies = [('sessions', 'new')]\n"} if mistake == "circle" else {}
    assert run("makemigrations", "--dry-run", address=url(scratch), new=text, **files).startswith(expected)


def test_a_broken_package(run):
    said = run("makemigrations", address=UNREACHABLE, __init__="1 / 0")
    assert said.startswith("The package broken cannot be loaded: ZeroDivisionError: division by zero, in line 1 of ")


@pytest.mark.parametrize("command", ["migrate", "showmigrations", "rollback"])
def test_every_command_says_it(run, scratch, command):
    said = run(command, address=url(scratch), new=f"{HEAD}    dependencies = [\n")
    assert said.startswith("Migration sessions.new cannot be loaded: SyntaxError")


def test_a_migration_that_comes_before_what_is_applied(run, scratch):
    recorder = MigrationRecorder(scratch)
    recorder.ensure_schema()
    recorder.record_applied("sessions", "new")
    said = run(
        "makemigrations",
        address=url(scratch),
        old=HEAD + "    pass",
        new=f"{HEAD}    dependencies = [('sessions', 'old')]",
    )
    assert said.startswith(
        "Migration sessions.new is applied before its dependency sessions.old on database 'default'."
    )
    assert "make it depend on the app's last migration" in said


@pytest.mark.parametrize("command", ["makemigrations", "showmigrations"])
def test_an_unknown_app_ends_as_with_django(command, capsys, db):
    with pytest.raises(SystemExit, match="2"):
        call_command(command, "task")
    assert capsys.readouterr().err == "No installed app with label 'task'.\n"


def test_an_app_that_is_called_by_its_module():
    with pytest.raises(CommandError, match=r"^No installed app with label 'django.contrib.auth'. Did you mean 'auth'"):
        call_command("migrate", "django.contrib.auth")


def test_an_unknown_database():
    code, _, err = manage("rollback", "--database", "nowhere", DEBUG="1", DATABASE_URL=UNREACHABLE)
    assert code == 2
    assert "argument --database: invalid choice: 'nowhere' (choose from " in err.splitlines()[-1]
