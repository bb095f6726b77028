"""From here on, what code of before the split writes to ``users`` reaches ``profiles`` too."""

from django.db import migrations

from accounts import profile_sync


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210210000_create_profiles_table"),
    ]

    operations = [
        migrations.RunSQL(sql=profile_sync.CREATE, reverse_sql=profile_sync.DROP),
    ]
