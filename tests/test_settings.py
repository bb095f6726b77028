"""Do the settings keep a production server safe, and say in one sentence what is wrong with the environment?"""

import os
import subprocess
import sys

import pytest
from django.conf import settings

from tests import forks

pytestmark = pytest.mark.once

UNREACHABLE = "postgresql://maria:s3cret-w0rd@127.0.0.1:1/gotong"
PRODUCTION = {
    "DATABASE_URL": UNREACHABLE,
    "SECRET_KEY": "w8SxJm3fQzR0vK5tYbN7uD2hL9cA4eGpTiOj6sVqXkZyMnBrWf1",
    "ALLOWED_HOSTS": "gotong.example.org, www.gotong.example.org",
}


def manage(*arguments, **environment):
    """Run ``manage.py`` in an environment of its own and return its exit code, output and errors."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    done = forks.manage(*arguments, env=environment)
    return done.returncode, done.stdout, done.stderr


def setting(name, **environment):
    program = f"from gotong_royong import settings; print(settings.{name})"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **environment},
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_documented_production_environment_has_no_warning():
    code, out, err = manage("check", "--deploy", "--fail-level", "WARNING", **PRODUCTION)
    assert (code, out) == (0, "System check identified no issues (0 silenced).\n"), err


def test_a_short_secret_key_is_warned_of():
    code, _, err = manage("check", "--deploy", "--fail-level", "WARNING", **{**PRODUCTION, "SECRET_KEY": "short"})
    assert code == 1
    assert "security.W009" in err


@pytest.mark.parametrize("command", ["migrate", "check", "runserver"])
def test_no_secret_key(command):
    code, _, err = manage(command, DATABASE_URL=UNREACHABLE)
    assert code == 1
    assert err == (
        "Error: SECRET_KEY is not set. In production set it to a long random text; for development set DEBUG=1.\n"
    )


def test_debug_needs_no_secret_key_and_no_https():
    assert setting("SECURE_SSL_REDIRECT", DEBUG="1", DATABASE_URL=UNREACHABLE) == "False"
    assert setting("SECURE_SSL_REDIRECT", **PRODUCTION) == "True"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)])
def test_flags(text, value):
    assert setting("DEBUG", **{**PRODUCTION, "DEBUG": text}) == str(value)


def test_lists():
    assert setting("ALLOWED_HOSTS", **PRODUCTION) == "['gotong.example.org', 'www.gotong.example.org']"


@pytest.mark.parametrize(
    "address",
    [
        "mysql://maria:s3cret-w0rd@127.0.0.1/gotong",
        "sqlite:///db.sqlite3",
        "postgresql://maria:s3cret-w0rd@127.0.0.1:1",
        "postgresql://maria:s3cret-w0rd@127.0.0.1:port/gotong",
        "postgresql://maria:s3cret-w0rd/x@127.0.0.1/gotong",
        "s3cret-w0rd",
    ],
)
def test_a_wrong_database_url(address):
    code, out, err = manage("migrate", DEBUG="1", DATABASE_URL=address)
    assert (code, out) == (1, "")
    assert err.startswith("Error: DATABASE_URL is not a PostgreSQL address. Write postgresql://")
    assert err.count("\n") == 1
    assert "s3cret" not in err
