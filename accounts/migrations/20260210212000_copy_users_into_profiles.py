"""Give every user of before the split a profile; see ``_batches`` for how it is stopped and resumed."""

from django.db import migrations
from django.db.models import OuterRef, Subquery

from accounts.migrations._batches import in_batches

COLUMNS = ("bio", "location", "avatar_url")


def copy(apps, schema_editor):
    alias = schema_editor.connection.alias
    users = apps.get_model("accounts", "User").objects.using(alias)
    profile = apps.get_model("accounts", "Profile")

    def make_profiles(batch):
        # Locked, lest an update between the read and the insert be overwritten with what it replaced.
        rows = batch.select_for_update(no_key=True, of=("self",)).values_list("pk", *COLUMNS)
        profile.objects.using(alias).bulk_create(
            [profile(user_id=key, **dict(zip(COLUMNS, values, strict=True))) for key, *values in rows],
            ignore_conflicts=True,
        )

    in_batches(users.filter(profile__isnull=True), make_profiles)


def copy_back(apps, schema_editor):
    alias = schema_editor.connection.alias
    users = apps.get_model("accounts", "User").objects.using(alias)
    profile = apps.get_model("accounts", "Profile").objects.using(alias).filter(user=OuterRef("pk"))
    in_batches(
        users.filter(profile__isnull=False),
        lambda batch: batch.update(**{column: Subquery(profile.values(column)) for column in COLUMNS}),
    )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210211000_sync_profiles_with_users"),
    ]

    operations = [
        migrations.RunPython(copy, copy_back),
    ]
