"""Index contributions by their type.

CONCURRENTLY blocks no reads and writes while it builds the index
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
