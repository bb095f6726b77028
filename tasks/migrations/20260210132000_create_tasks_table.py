import django.contrib.postgres.functions
import django.contrib.postgres.indexes
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "20260210120000_create_users_table"),
    ]

    operations = [
        migrations.CreateModel(
            name="Task",
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
                ("created_at", models.DateTimeField(db_default=models.Func(function="now"), editable=False)),
                ("title", models.CharField(max_length=200)),
                ("description", models.TextField(blank=True, null=True)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("assigned", "Assigned"),
                            ("in_progress", "In Progress"),
                            ("completed", "Completed"),
                            ("cancelled", "Cancelled"),
                        ],
                        db_default="open",
                        max_length=20,
                    ),
                ),
                (
                    "difficulty",
                    models.CharField(
                        blank=True,
                        choices=[("easy", "Easy"), ("intermediate", "Intermediate"), ("hard", "Hard")],
                        max_length=20,
                        null=True,
                    ),
                ),
                ("location", models.CharField(blank=True, max_length=255, null=True)),
                ("estimated_hours", models.DecimalField(blank=True, decimal_places=2, max_digits=5, null=True)),
                ("metadata", models.JSONField(blank=True, null=True)),
                ("completed_at", models.DateTimeField(blank=True, null=True)),
                (
                    "assignee",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="tasks_assigned",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "creator",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tasks_created",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "tasks",
                "indexes": [
                    models.Index(fields=["creator"], name="idx_tasks_creator"),
                    models.Index(fields=["assignee"], name="idx_tasks_assignee"),
                    models.Index(fields=["status"], name="idx_tasks_status"),
                    models.Index(fields=["-created_at"], name="idx_tasks_created"),
                    django.contrib.postgres.indexes.GinIndex(fields=["metadata"], name="idx_tasks_metadata"),
                    models.Index(
                        condition=models.Q(("status", "open")), fields=["status"], name="idx_tasks_open_skills"
                    ),
                ],
            },
        ),
    ]
