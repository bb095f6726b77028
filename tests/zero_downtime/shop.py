"""A project of its own, with one small app whose migrations a test writes, on Django's command line: no manage.py."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from django.conf import settings

from tests.forks import Forked

SETTINGS = """
import os
import dj_database_url
SECRET_KEY = "for-tests-only"
INSTALLED_APPS = ["gotong_royong.zero_downtime", "shop"]
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""
MIGRATION = """
import time
from django.db import migrations, models

def column(table, name):
    return migrations.RunSQL(f"ALTER TABLE {table} ADD COLUMN {name} int", f"ALTER TABLE {table} DROP COLUMN {name}")

class Migration(migrations.Migration):
    dependencies = [%(dependencies)s]
    %(attributes)s
    operations = [%(operations)s]
"""
ITEMS = 'migrations.RunSQL("CREATE TABLE items (id int PRIMARY KEY)", "DROP TABLE items")'


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Shop:
    """Its migrations stand in the order of their names, each needing the one before.

    Args:
        folder: where its files are written.
        address: DATABASE_URL of the database that it migrates.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.migrations = folder / "shop" / "migrations"
        self.migrations.mkdir(parents=True)
        for package in (self.migrations, self.migrations.parent):
            (package / "__init__.py").touch()
        self.settings()

    @property
    def environment(self) -> dict[str, str]:
        """What its processes run with."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{self.folder}{os.pathsep}{settings.BASE_DIR}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DJANGO_SETTINGS_MODULE": "shop_settings",
            "DATABASE_URL": self.address,
            **{name: os.environ[name] for name in ("XDG_CACHE_HOME",) if name in os.environ},
        }

    def settings(self, more: str = "") -> None:
        (self.folder / "shop_settings.py").write_text(SETTINGS + more)

    def app(self, label: str, **files: str) -> None:
        """Install another app, of these files besides ``__init__.py``, in place of other changes of the settings."""
        folder = self.folder / label
        folder.mkdir()
        for name, text in {"__init__": "", **files}.items():
            (folder / f"{name}.py").write_text(text)
        self.settings(f"INSTALLED_APPS.append({label!r})\n")

    def models(self, text: str) -> None:
        (self.folder / "shop" / "models.py").write_text(f"from django.db import models\n{text}")

    def write(self, name: str, operations: str, attributes: str = "", app: str = "shop") -> None:
        """Write a migration, over the one of that name if there is one."""
        folder = self.migrations if app == "shop" else self.folder / app / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        before = sorted(path.stem for path in folder.glob("[0-9]*.py") if path.stem < name)
        dependencies = f"({app!r}, {before[-1]!r})" if before else ""
        text = MIGRATION % {"dependencies": dependencies, "attributes": attributes, "operations": operations}
        (folder / f"{name}.py").write_text(text)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str] | Forked":
        """Begin a command; its output and errors are pipes."""
        is_for_python = any(name.startswith("PYTHON") for name in environment)
        environment = {**self.environment, **environment}
        if not is_for_python:
            return Forked("-m", "django", *arguments, env=environment, cwd=self.folder)
        command = [sys.executable, "-m", "django", *arguments]
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, cwd=self.folder, text=True, **pipes)

    def run(self, *arguments: str, **environment: str) -> Done:
        """Run a command to its end."""
        return finish(self.start(*arguments, **environment))

    def succeed(self, *arguments: str, **environment: str) -> str:
        """Run a command that must succeed; return its output."""
        done = self.run(*arguments, **environment)
        assert done.code == 0, done.out + done.err
        return done.out

    def fail(self, *arguments: str, **environment: str) -> str:
        """Run a command that must say what is wrong, without a traceback; return that."""
        done = self.run(*arguments, **environment)
        assert done.code == 1, done.out + done.err
        assert "Traceback" not in done.err, done.err
        return done.err


def finish(process: "subprocess.Popen[str] | Forked") -> Done:
    """Wait for a command's end, a minute at most; one that takes longer fails and says where it was."""
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        process.kill()
        pytest.fail("".join(process.communicate()))
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, out, err)
