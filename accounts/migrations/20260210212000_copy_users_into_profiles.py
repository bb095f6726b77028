"""Give every user of before the split a profile, before the columns that it comes from are dropped."""

from django.db import migrations

from gotong_royong.zero_downtime.backfills import inline

NAME = "accounts.copy_users_into_profiles"


def copy(apps, schema_editor):
    inline.finish(NAME, schema_editor.connection, apps.get_model("accounts", "User"))


def copy_back(apps, schema_editor):
    inline.take_back(NAME, schema_editor.connection, apps.get_model("accounts", "User"))


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210211000_sync_profiles_with_users"),
    ]

    operations = [
        migrations.RunPython(copy, copy_back),
    ]
