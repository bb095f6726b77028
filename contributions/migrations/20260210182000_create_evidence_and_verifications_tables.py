import django.contrib.postgres.functions
import django.contrib.postgres.indexes
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("contributions", "20260210170000_add_index_contributions_user_status"),
    ]

    operations = [
        migrations.CreateModel(
            name="Evidence",
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
                (
                    "evidence_type",
                    models.CharField(
                        choices=[
                            ("photo_with_timestamp", "Photo With Timestamp"),
                            ("gps_verification", "GPS verification"),
                            ("witness_attestation", "Witness Attestation"),
                        ],
                        max_length=50,
                    ),
                ),
                ("file_url", models.TextField()),
                (
                    "media_hash",
                    models.CharField(blank=True, help_text="SHA-256 of the file, in hex.", max_length=128, null=True),
                ),
                ("timestamp", models.DateTimeField()),
                ("latitude", models.DecimalField(blank=True, decimal_places=8, max_digits=10, null=True)),
                ("longitude", models.DecimalField(blank=True, decimal_places=8, max_digits=11, null=True)),
                ("metadata", models.JSONField(blank=True, null=True)),
                (
                    "contribution",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="evidence",
                        to="contributions.contribution",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "evidence",
                "db_table": "evidence",
            },
        ),
        migrations.CreateModel(
            name="Verification",
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
                (
                    "outcome",
                    models.CharField(
                        choices=[("approved", "Approved"), ("rejected", "Rejected"), ("pending", "Pending")],
                        max_length=20,
                    ),
                ),
                ("evidence_quality_score", models.DecimalField(blank=True, decimal_places=2, max_digits=3, null=True)),
                ("notes", models.TextField(blank=True, null=True)),
                (
                    "contribution",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="verifications",
                        to="contributions.contribution",
                    ),
                ),
                (
                    "verifier",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="verifications",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "verifications",
            },
        ),
        migrations.CreateModel(
            name="Witness",
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
                (
                    "witness_id",
                    models.CharField(
                        blank=True, help_text="A user's id, or one from outside.", max_length=100, null=True
                    ),
                ),
                ("witness_name", models.CharField(max_length=255)),
                (
                    "relationship",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("supervisor", "Supervisor"),
                            ("peer", "Peer"),
                            ("beneficiary", "Beneficiary"),
                            ("other", "Other"),
                        ],
                        max_length=50,
                        null=True,
                    ),
                ),
                ("statement", models.TextField(blank=True, null=True)),
                (
                    "evidence",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="witnesses",
                        to="contributions.evidence",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "witnesses",
                "db_table": "witnesses",
            },
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=models.Index(fields=["contribution"], name="idx_evidence_contribution"),
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=models.Index(fields=["evidence_type"], name="idx_evidence_type"),
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=models.Index(fields=["media_hash"], name="idx_evidence_hash"),
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=models.Index(fields=["-timestamp"], name="idx_evidence_timestamp"),
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=models.Index(fields=["latitude", "longitude"], name="idx_evidence_location"),
        ),
        migrations.AddIndex(
            model_name="evidence",
            index=django.contrib.postgres.indexes.GinIndex(fields=["metadata"], name="idx_evidence_metadata"),
        ),
        migrations.AddIndex(
            model_name="verification",
            index=models.Index(fields=["contribution"], name="idx_verifications_contribution"),
        ),
        migrations.AddIndex(
            model_name="verification",
            index=models.Index(fields=["verifier"], name="idx_verifications_verifier"),
        ),
        migrations.AddIndex(
            model_name="verification",
            index=models.Index(fields=["outcome"], name="idx_verifications_outcome"),
        ),
        migrations.AddIndex(
            model_name="verification",
            index=models.Index(fields=["-created_at"], name="idx_verifications_created"),
        ),
        migrations.AddIndex(
            model_name="witness",
            index=models.Index(fields=["evidence"], name="idx_witnesses_evidence"),
        ),
        migrations.AddIndex(
            model_name="witness",
            index=models.Index(fields=["witness_id"], name="idx_witnesses_witness_id"),
        ),
    ]
