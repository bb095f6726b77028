import django.contrib.postgres.functions
import django.contrib.postgres.indexes
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "20260210120000_create_users_table"),
        ("tasks", "20260210132000_create_tasks_table"),
    ]

    operations = [
        migrations.CreateModel(
            name="Contribution",
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
                ("evidence_url", models.TextField(blank=True, null=True)),
                (
                    "verification_status",
                    models.CharField(
                        choices=[("pending", "Pending"), ("verified", "Verified"), ("rejected", "Rejected")],
                        db_default="pending",
                        max_length=20,
                    ),
                ),
                ("markov_contribution_id", models.CharField(blank=True, max_length=100, null=True)),
                ("metadata", models.JSONField(blank=True, null=True)),
                (
                    "task",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="contributions",
                        to="tasks.task",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="contributions",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "contributions",
                "indexes": [
                    models.Index(fields=["user", "-created_at"], name="idx_contributions_user_recent"),
                    models.Index(fields=["task"], name="idx_contributions_task"),
                    models.Index(fields=["verification_status"], name="idx_contributions_status"),
                    models.Index(fields=["-created_at"], name="idx_contributions_created"),
                    django.contrib.postgres.indexes.GinIndex(fields=["metadata"], name="idx_contributions_metadata"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("markov_contribution_id",), name="idx_contributions_markov_id")
                ],
            },
        ),
    ]
