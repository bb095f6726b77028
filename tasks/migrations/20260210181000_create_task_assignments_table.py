import django.contrib.postgres.functions
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from gotong_royong.zero_downtime.operations import IgnoreRules


class Migration(migrations.Migration):
    dependencies = [
        ("tasks", "20260210140000_create_task_skills_table"),
    ]

    operations = [
        IgnoreRules("W403", reason="Who assigned is shown, never searched for; and users are deactivated, not deleted."),
        migrations.CreateModel(
            name="TaskAssignment",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        db_default=django.contrib.postgres.functions.RandomUUID(),
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("assigned_at", models.DateTimeField(blank=True, db_default=models.Func(function="now"), null=True)),
                ("completed_at", models.DateTimeField(blank=True, null=True)),
                (
                    "status",
                    models.CharField(
                        blank=True,
                        choices=[("active", "Active"), ("completed", "Completed"), ("reassigned", "Reassigned")],
                        db_default="active",
                        max_length=20,
                        null=True,
                    ),
                ),
                (
                    "assigned_by",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="assignments_made",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "task",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="assignments",
                        to="tasks.task",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="assignments",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "task_assignments",
                "indexes": [
                    models.Index(fields=["task"], name="idx_task_assignments_task"),
                    models.Index(fields=["user"], name="idx_task_assignments_user"),
                    models.Index(fields=["status"], name="idx_task_assignments_status"),
                ],
            },
        ),
    ]
