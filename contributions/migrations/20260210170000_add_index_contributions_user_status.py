"""Index a user's contributions by their status.

CONCURRENTLY blocks no reads and writes while it builds the index
(https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY).
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("contributions", "20260210161000_create_contributions_table"),
    ]

    operations = [
        migrations.RunSQL(
            sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_contributions_user_status ON contributions (user_id, verification_status)",
            reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS idx_contributions_user_status",
            state_operations=[
                migrations.AddIndex(
                    model_name="contribution",
                    index=models.Index(fields=["user", "verification_status"], name="idx_contributions_user_status"),
                ),
            ],
        ),
    ]
