"""Create the enum type of contributions: https://www.postgresql.org/docs/current/datatype-enum.html."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("contributions", "20260210192000_add_check_constraints_contributions"),
    ]

    operations = [
        migrations.RunSQL(
            sql="""
            DO $$
            BEGIN
                IF to_regtype('contribution_type') IS NULL THEN
                    CREATE TYPE contribution_type AS ENUM (
                        'task_completion',
                        'code_review',
                        'documentation',
                        'mentoring',
                        'event_organization',
                        'community_service',
                        'custom'
                    );
                END IF;
            END $$
            """,
            reverse_sql="DROP TYPE IF EXISTS contribution_type",
        ),
    ]
