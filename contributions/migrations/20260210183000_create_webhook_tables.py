import django.contrib.postgres.functions
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("contributions", "20260210182000_create_evidence_and_verifications_tables"),
    ]

    operations = [
        migrations.CreateModel(
            name="WebhookEvent",
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
                ("event_id", models.CharField(max_length=50)),
                (
                    "event_type",
                    models.CharField(
                        choices=[
                            ("contribution_created", "Contribution Created"),
                            ("vouch_submitted", "Vouch Submitted"),
                            ("por_evidence", "Proof of reality evidence"),
                        ],
                        max_length=50,
                    ),
                ),
                ("payload", models.JSONField()),
                (
                    "status",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("pending", "Pending"),
                            ("processing", "Processing"),
                            ("delivered", "Delivered"),
                            ("failed", "Failed"),
                        ],
                        db_default="pending",
                        max_length=20,
                        null=True,
                    ),
                ),
                ("attempts", models.IntegerField(blank=True, db_default=0, null=True)),
                ("last_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("error_message", models.TextField(blank=True, null=True)),
            ],
            options={
                "db_table": "webhook_events",
                "indexes": [
                    models.Index(fields=["status"], name="idx_webhook_events_status"),
                    models.Index(fields=["event_type"], name="idx_webhook_events_type"),
                    models.Index(fields=["-created_at"], name="idx_webhook_events_created"),
                ],
                "constraints": [models.UniqueConstraint(fields=("event_id",), name="idx_webhook_events_event_id")],
            },
        ),
        migrations.CreateModel(
            name="WebhookFailure",
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
                ("event_id", models.CharField(blank=True, max_length=50, null=True)),
                (
                    "event_type",
                    models.CharField(
                        choices=[
                            ("contribution_created", "Contribution Created"),
                            ("vouch_submitted", "Vouch Submitted"),
                            ("por_evidence", "Proof of reality evidence"),
                        ],
                        max_length=50,
                    ),
                ),
                ("payload", models.JSONField()),
                ("error_message", models.TextField(blank=True, null=True)),
                ("status_code", models.IntegerField(blank=True, null=True)),
                ("attempts", models.IntegerField(blank=True, db_default=0, null=True)),
                ("last_attempt_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "db_table": "webhook_failures",
                "indexes": [
                    models.Index(fields=["event_type"], name="idx_webhook_failures_type"),
                    models.Index(fields=["-created_at"], name="idx_webhook_failures_created"),
                ],
            },
        ),
    ]
