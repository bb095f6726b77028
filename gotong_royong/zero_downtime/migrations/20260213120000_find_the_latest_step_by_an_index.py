from django.db import migrations, models

from ..operations import IgnoreRules


class Migration(migrations.Migration):

    atomic = False

    dependencies = [
        ('zero_downtime', '20260213000000_create_zero_downtime_backfill_event_table_and_try_again'),
    ]

    operations = [
        IgnoreRules('E103', 'W411', reason='Only runs write the ledger, one at a time, and it is this run that waits.'),
        IgnoreRules('E103', 'W411', reason='It is the run that takes this back which waits.', direction='down'),
        migrations.AddIndex(
            model_name='step',
            index=models.Index(fields=['app', 'name', 'id'], name='zero_downtime_step_latest'),
        ),
        migrations.RemoveIndex(
            model_name='step',
            name='zero_downtime_step_migration',
        ),
        migrations.AddIndex(
            model_name='step',
            index=models.Index(condition=models.Q(('status', 'succeeded'), _negated=True), fields=['id'], name='zero_downtime_step_unfinished'),
        ),
        migrations.AddIndex(
            model_name='run',
            index=models.Index(condition=models.Q(('status', 'running')), fields=['id'], name='zero_downtime_run_running'),
        ),
    ]
