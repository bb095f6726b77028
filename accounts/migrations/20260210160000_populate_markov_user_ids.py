"""Give a ``markov_user_id`` to every user from before the trigger.

``RunBackfill`` is a ``RunPython`` that leaves a large table to the background; see ``accounts.backfills``.
"""

from django.db import migrations

from gotong_royong.zero_downtime.operations import RunBackfill


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210155000_assign_markov_user_ids_on_insert"),
    ]

    operations = [
        RunBackfill("accounts.populate_markov_user_ids"),
    ]
