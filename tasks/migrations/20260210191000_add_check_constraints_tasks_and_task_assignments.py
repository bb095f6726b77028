"""Check the values of tasks and their assignments.

Each constraint is added NOT VALID, which locks the table only for a moment, and validated by a second statement, which
blocks no reads and writes (https://www.postgresql.org/docs/current/sql-altertable.html).
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("tasks", "20260210181000_create_task_assignments_table"),
    ]

    operations = [
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE tasks DROP CONSTRAINT IF EXISTS check_status,
                ADD CONSTRAINT check_status CHECK (status IN ('open', 'assigned', 'in_progress', 'completed', 'cancelled')) NOT VALID
                """,
                "ALTER TABLE tasks VALIDATE CONSTRAINT check_status",
            ],
            reverse_sql="ALTER TABLE tasks DROP CONSTRAINT IF EXISTS check_status",
            state_operations=[
                migrations.AddConstraint(
                    model_name="task",
                    constraint=models.CheckConstraint(
                        condition=models.Q(status__in=["open", "assigned", "in_progress", "completed", "cancelled"]),
                        name="check_status",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE tasks DROP CONSTRAINT IF EXISTS check_difficulty,
                ADD CONSTRAINT check_difficulty CHECK (difficulty IN ('easy', 'intermediate', 'hard')) NOT VALID
                """,
                "ALTER TABLE tasks VALIDATE CONSTRAINT check_difficulty",
            ],
            reverse_sql="ALTER TABLE tasks DROP CONSTRAINT IF EXISTS check_difficulty",
            state_operations=[
                migrations.AddConstraint(
                    model_name="task",
                    constraint=models.CheckConstraint(
                        condition=models.Q(difficulty__in=["easy", "intermediate", "hard"]),
                        name="check_difficulty",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE task_assignments DROP CONSTRAINT IF EXISTS check_assignment_status,
                ADD CONSTRAINT check_assignment_status CHECK (status IN ('active', 'completed', 'reassigned')) NOT VALID
                """,
                "ALTER TABLE task_assignments VALIDATE CONSTRAINT check_assignment_status",
            ],
            reverse_sql="ALTER TABLE task_assignments DROP CONSTRAINT IF EXISTS check_assignment_status",
            state_operations=[
                migrations.AddConstraint(
                    model_name="taskassignment",
                    constraint=models.CheckConstraint(
                        condition=models.Q(status__in=["active", "completed", "reassigned"]),
                        name="check_assignment_status",
                    ),
                ),
            ],
        ),
    ]
