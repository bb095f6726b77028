"""Give a profile to every user from before the split; a later migration drops the columns that it comes from."""

from django.db import migrations

from gotong_royong.zero_downtime.operations import RunBackfill


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210211000_sync_profiles_with_users"),
    ]

    operations = [
        RunBackfill("accounts.copy_users_into_profiles", wait=True),
    ]
