"""Drop the trigger: no code writes a profile to ``users`` any more."""

from django.db import migrations

from accounts import profile_sync


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210220000_let_the_database_follow_deletes"),
    ]

    operations = [
        migrations.RunSQL(sql=profile_sync.DROP, reverse_sql=profile_sync.CREATE),
    ]
