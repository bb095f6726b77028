"""Is it told apart whether an error ended the session?"""

import time

import pytest
from django.db import Error, transaction

from gotong_royong.zero_downtime.postgres import locks

pytestmark = pytest.mark.once


def idle(database):
    with transaction.atomic(using=database.alias), database.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '10ms'")
        time.sleep(0.2)
        cursor.execute("SELECT 1")


def overdue(database):
    if database.pg_version < 170000:
        pytest.skip(f"PostgreSQL {database.pg_version // 10000} knows no transaction_timeout")
    with transaction.atomic(using=database.alias), database.cursor() as cursor:
        cursor.execute("SET LOCAL transaction_timeout = '10ms'")
        time.sleep(0.2)
        cursor.execute("SELECT 1")


def terminated(database):
    with database.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def mistaken(database):
    with database.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


OVERDUE = pytest.param(overdue, True, marks=pytest.mark.once)


@pytest.mark.parametrize(("how", "lost"), [(idle, True), OVERDUE, (terminated, True), (mistaken, False)])
def test_a_session_that_was_ended_is_lost(scratch, how, lost):
    with pytest.raises(Error) as caught:
        how(scratch)
    assert locks.is_lost(caught.value) is lost
