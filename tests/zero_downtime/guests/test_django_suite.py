"""Which of Django's own tests end otherwise with our commands and our schema editor in place? Those that are listed."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import django
import pytest
from django.db import connection

SUITES = "migrations", "migrations2", "migrate_signals", "schema", "introspection"
HERE, ROOT = Path(__file__).parent / "django_suite", Path(__file__).parents[3]
LISTED = HERE / f"differences-{django.VERSION[0]}.{django.VERSION[1]}.txt"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return Django's source, with its tests, which its wheel does not have."""
    folder, version = tmp_path_factory.mktemp("django"), django.__version__
    asked = "download", "--quiet", "--no-deps", "--no-binary", "django", "--dest", str(folder), f"django=={version}"
    subprocess.run([sys.executable, "-m", "pip", *asked], check=True, timeout=200)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"django-{version}"


def start(source, settings, folder):
    """Begin Django's tests in databases of their own."""
    known = {key: connection.settings_dict[key] for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")}
    databases = {
        alias: {**known, "NAME": f"suite_{alias}", "TEST": {"NAME": f"suite_{settings}_{alias}_{os.getpid()}"}}
        for alias in ("default", "other")
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "ZERO_"))} | {
        "PYTHONPATH": f"{source}{os.pathsep}{ROOT}",
        "SUITE_DATABASES": json.dumps(databases),
        "SUITE_RESULT": str(folder / settings),
    }
    named = f"--settings=tests.zero_downtime.guests.django_suite.{settings}"
    command = [sys.executable, "runtests.py", named, "--parallel=1", "--noinput", *SUITES]
    with (folder / f"{settings}.log").open("w") as log:
        return subprocess.Popen(command, cwd=source / "tests", env=environment, stdout=log, stderr=log)


@pytest.mark.django_suite
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LISTED.exists(), reason="nothing is listed for this Django")
def test_only_the_listed_ones_of_djangos_tests_end_otherwise_with_ours(source, tmp_path):
    listed = dict(line.split("  ", 1) for line in LISTED.read_text().splitlines() if line)
    for run in [start(source, settings, tmp_path) for settings in ("stock", "ours")]:
        run.wait()
    logs = "\n".join((tmp_path / f"{settings}.log").read_text()[-2000:] for settings in ("stock", "ours"))
    assert (tmp_path / "stock").exists(), logs
    assert (tmp_path / "ours").exists(), logs
    stock, ours = (json.loads((tmp_path / settings).read_text()) for settings in ("stock", "ours"))
    passing = [test for test, how in stock.items() if how == "passes"]
    assert len(passing) > 950, logs  # without ICU, and on PostgreSQL 18, some of Django 5.2's own fail
    print(len(stock), {how: list(ours.values()).count(how) for how in set(ours.values())})
    assert {test for test in stock.keys() | ours.keys() if stock.get(test) != ours.get(test)} == listed.keys()
