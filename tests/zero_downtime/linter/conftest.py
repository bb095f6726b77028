"""A scratch database as the linter makes it, which the tests of one file share: each empties it first."""

import shutil

import pytest
from django.db import connection

from gotong_royong.zero_downtime.backfills import declarations
from gotong_royong.zero_downtime.linter.scratch import place, scratch
from tests import memory


@pytest.fixture(scope="module")
def shared(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), place(connection) as where, scratch(connection, where) as database:
        yield database


@pytest.fixture
def tried(shared, django_db_blocker):
    with django_db_blocker.unblock():
        yield shared


@pytest.fixture(autouse=True)
def forget_declarations():
    """Let the backfills that a test's history declares go with it."""
    declarations.all_declared()  # imports those of the apps, which must stay declared
    known = dict(declarations.DECLARED)
    yield
    declarations.DECLARED.clear()
    declarations.DECLARED.update(known)


@pytest.fixture
def no_other_servers(monkeypatch):
    """Let the linter keep its servers in a folder where there are none yet."""
    folder = memory.temporary("zd-")
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}")
    yield folder / "zero_downtime"
    shutil.rmtree(folder)
