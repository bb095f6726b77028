"""Do commands work in other threads, and does one that a migration or a receiver calls not wait for itself?"""

import threading

import pytest
from django.core.management import call_command
from django.db import connections, transaction

from gotong_royong.zero_downtime.exceptions import WithinTransaction
from gotong_royong.zero_downtime.models import Run
from tests.zero_downtime.test_stages import applied

pytestmark = pytest.mark.once

CALLS = """
import threading
from django.core.management import call_command
from django.db import connections, migrations

def call(apps, schema_editor):
    call_command("{command}", {arguments})

def call_in_a_thread(apps, schema_editor):
    def go():
        try:
            call_command("{command}", {arguments})
        except Exception as error:
            said.append(error)
        finally:
            connections.close_all()

    said = []
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if said:
        raise said[0]

class Migration(migrations.Migration):
    atomic = {atomic}
    dependencies = [("shop", "0001_items")]
    operations = [migrations.RunPython({function})]
"""
RECEIVER = """
from django.core.management import call_command
from django.db.models.signals import post_migrate, pre_migrate

called = []

def call(app_config, signal, **how):
    if app_config.label == "shop" and signal not in called:
        called.append(signal)
        call_command("migrate", "other", interactive=False)
        print("called by", "pre_migrate" if signal is pre_migrate else "post_migrate")

pre_migrate.connect(call)
post_migrate.connect(call)
"""


def test_commands_work_in_another_thread(scratch):
    errors = []

    def go():
        try:
            call_command("migrate", "contenttypes", database=scratch.alias, verbosity=0)
            call_command("rollback", steps=1, yes=True, database=scratch.alias, verbosity=0)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=go)
    thread.start()
    thread.join(60)
    assert (thread.is_alive(), errors) == (False, [])
    runs = Run.objects.using(scratch.alias).order_by("pk").values_list("command", "status")
    assert list(runs) == [("migrate", "succeeded"), ("rollback", "succeeded")]


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("function", ["call", "call_in_a_thread"])
@pytest.mark.parametrize(("command", "arguments"), [("migrate", ""), ("rollback", "yes=True")])
def test_a_command_within_a_migration_is_refused(shop, scratch, atomic, function, command, arguments):
    text = CALLS.format(atomic=atomic, function=function, command=command, arguments=arguments)
    (shop.migrations / "0002_calls.py").write_text(text)
    said = shop.fail("migrate")
    assert "shop.0002_calls was stopped in operation 1 of 1. A migration or a thread called a command that " in said
    assert "(run 1 (migrate)). It would wait for itself." in said
    assert applied(scratch) == ["0001"]
    assert list(Run.objects.using(scratch.alias).values_list("status", flat=True)) == ["failed"]


def test_a_receiver_may_migrate(shop, scratch):
    shop.settings("INSTALLED_APPS.append('other')\n")
    shop.write("0001_things", 'migrations.RunSQL("CREATE TABLE things ()", "DROP TABLE things")', app="other")
    (shop.folder / "other" / "__init__.py").touch()
    shop.models(RECEIVER)
    said = shop.succeed("migrate", "shop")
    assert "called by pre_migrate" in said
    assert "called by post_migrate" in said
    runs = Run.objects.using(scratch.alias).order_by("pk")
    assert [(run.status, [step.app for step in run.steps.all()]) for run in runs] == [
        ("succeeded", ["other"]),
        ("succeeded", ["shop"]),
    ]


@pytest.mark.parametrize("command", ["migrate", "rollback"])
def test_within_a_transaction_of_the_caller(scratch, command):
    """Whose end would undo what the ledger says is done."""
    call_command("migrate", "sessions", database=scratch.alias, verbosity=0)
    with transaction.atomic(using=scratch.alias), pytest.raises(WithinTransaction):
        call_command(command, database=scratch.alias, verbosity=0)
    assert Run.objects.using(scratch.alias).count() == 1
