"""Give every user of before the trigger a ``markov_user_id``, now or in the background; see ``accounts.backfills``."""

from django.db import migrations

from gotong_royong.zero_downtime.backfills import inline

NAME = "accounts.populate_markov_user_ids"


def populate(apps, schema_editor):
    inline.start(NAME, schema_editor.connection, apps.get_model("accounts", "User"))


def clear(apps, schema_editor):
    inline.take_back(NAME, schema_editor.connection, apps.get_model("accounts", "User"))


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210155000_assign_markov_user_ids_on_insert"),
    ]

    operations = [
        migrations.RunPython(populate, clear),
    ]
