"""Find contributions of one kind.

CONCURRENTLY lets reads and writes go on while the index is built
(https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY).
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("contributions", "20260210201000_add_contribution_type_to_contributions"),
    ]

    operations = [
        migrations.RunSQL(
            sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_contributions_type ON contributions (contribution_type)",
            reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS idx_contributions_type",
            state_operations=[
                migrations.AddIndex(
                    model_name="contribution",
                    index=models.Index(fields=["contribution_type"], name="idx_contributions_type"),
                ),
            ],
        ),
    ]
