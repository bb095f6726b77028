from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210230000_stop_syncing_profiles"),
    ]

    operations = [
        migrations.RemoveField(
            model_name="user",
            name="avatar_url",
        ),
        migrations.RemoveField(
            model_name="user",
            name="bio",
        ),
        migrations.RemoveField(
            model_name="user",
            name="location",
        ),
    ]
