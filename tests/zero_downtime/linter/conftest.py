"""A scratch database as the linter makes it, which the tests of one file share: each empties it first."""

import pytest
from django.db import connection

from gotong_royong.zero_downtime.linter.scratch import place, scratch


@pytest.fixture(scope="module")
def shared(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock(), place(connection) as where, scratch(connection, where) as database:
        yield database


@pytest.fixture
def tried(shared, django_db_blocker):
    with django_db_blocker.unblock():
        yield shared
