from django.db import migrations

from gotong_royong.zero_downtime.stages import Stage


class Migration(migrations.Migration):
    stage = Stage.POST_DEPLOY

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
