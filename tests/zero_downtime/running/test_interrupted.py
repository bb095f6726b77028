"""Does Ctrl-C, before any of the round trips of a run, leave the database consistent and the ledger closed?"""

import signal
import threading
from itertools import count

import psycopg
import pytest
from django.core.management import call_command
from django.db import migrations, models
from django.db.migrations.recorder import MigrationRecorder

from gotong_royong.zero_downtime.models import Run
from tests.databases import look
from tests.zero_downtime.steps import run

pytestmark = [pytest.mark.once, pytest.mark.slow]

KEY = "accounts", "20270101000000_trial"


@pytest.fixture
def interrupt(monkeypatch):
    """Press Ctrl-C before the n-th round trip from now."""
    real, state = psycopg.Connection.wait, {}

    def wait(connection, *arguments, **keywords):
        if threading.current_thread() is threading.main_thread():
            state["made"] += 1
            if state["at"] == state["made"] - 1:
                signal.raise_signal(signal.SIGINT)
        return real(connection, *arguments, **keywords)

    def at(number):
        state.update(made=0, at=number)

    at(None)

    monkeypatch.setattr(psycopg.Connection, "wait", wait)
    return at


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that were being opened
@pytest.mark.parametrize("atomic", [True, False])
def test_ctrl_c_before_each_round_trip(scratch, interrupt, atomic):
    call_command("migrate", "accounts", "20260210131000", database=scratch.alias, verbosity=0)
    operations = [
        migrations.AddField("user", "points", models.IntegerField(db_default=1)),
        migrations.RunSQL("CREATE INDEX IF NOT EXISTS trial ON users (points)"),
    ]

    def take_back():
        with scratch.cursor() as cursor:
            cursor.execute("ALTER TABLE users DROP COLUMN IF EXISTS points")
        MigrationRecorder(scratch).record_unapplied(*KEY)

    run(scratch, *operations, atomic=atomic)
    expected = look(scratch)
    take_back()
    runs = Run.objects.using(scratch.alias)
    for number in count():
        known = runs.latest("pk").pk
        interrupt(number)
        try:
            run(scratch, *operations, atomic=atomic)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            interrupt(None)
            scratch.close()  # as the end of the process would do
        is_applied = KEY in MigrationRecorder(scratch).applied_migrations()
        for opened in runs.filter(pk__gt=known):
            assert opened.status in ({"interrupted", "succeeded"} if is_applied else {"interrupted"}), number
            statuses = set(opened.steps.values_list("status", flat=True))
            assert statuses <= {"succeeded" if is_applied else "interrupted"}, number
        if not is_applied:
            run(scratch, *operations, atomic=atomic)
        assert look(scratch) == expected
        take_back()
    assert number > 20
