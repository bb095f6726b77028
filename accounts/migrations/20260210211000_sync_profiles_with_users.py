"""Copy to ``profiles`` what code from before the split writes to ``users``."""

from django.db import migrations

from accounts import profile_sync


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210210000_create_profiles_table"),
    ]

    operations = [
        migrations.RunSQL(sql=profile_sync.CREATE, reverse_sql=profile_sync.DROP),
    ]
