"""Check the values of contributions, their proofs and the webhooks.

Each constraint is added NOT VALID, which locks the table only for a moment, and validated by a second statement, which
blocks no reads and writes (https://www.postgresql.org/docs/current/sql-altertable.html).
"""

from django.db import migrations, models

from gotong_royong.zero_downtime.operations import IgnoreRules


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("contributions", "20260210183000_create_webhook_tables"),
    ]

    operations = [
        IgnoreRules("W415", reason="No code that writes evidence or verifications was deployed before this."),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE contributions DROP CONSTRAINT IF EXISTS check_verification_status,
                ADD CONSTRAINT check_verification_status CHECK (verification_status IN ('pending', 'verified', 'rejected')) NOT VALID
                """,
                "ALTER TABLE contributions VALIDATE CONSTRAINT check_verification_status",
            ],
            reverse_sql="ALTER TABLE contributions DROP CONSTRAINT IF EXISTS check_verification_status",
            state_operations=[
                migrations.AddConstraint(
                    model_name="contribution",
                    constraint=models.CheckConstraint(
                        condition=models.Q(verification_status__in=["pending", "verified", "rejected"]),
                        name="check_verification_status",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_evidence_type,
                ADD CONSTRAINT check_evidence_type CHECK (evidence_type IN ('photo_with_timestamp', 'gps_verification', 'witness_attestation')) NOT VALID
                """,
                "ALTER TABLE evidence VALIDATE CONSTRAINT check_evidence_type",
            ],
            reverse_sql="ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_evidence_type",
            state_operations=[
                migrations.AddConstraint(
                    model_name="evidence",
                    constraint=models.CheckConstraint(
                        condition=models.Q(evidence_type__in=["photo_with_timestamp", "gps_verification", "witness_attestation"]),
                        name="check_evidence_type",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_latitude,
                ADD CONSTRAINT check_latitude CHECK (latitude BETWEEN -90 AND 90) NOT VALID
                """,
                "ALTER TABLE evidence VALIDATE CONSTRAINT check_latitude",
            ],
            reverse_sql="ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_latitude",
            state_operations=[
                migrations.AddConstraint(
                    model_name="evidence",
                    constraint=models.CheckConstraint(
                        condition=models.Q(latitude__range=(-90, 90)),
                        name="check_latitude",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_longitude,
                ADD CONSTRAINT check_longitude CHECK (longitude BETWEEN -180 AND 180) NOT VALID
                """,
                "ALTER TABLE evidence VALIDATE CONSTRAINT check_longitude",
            ],
            reverse_sql="ALTER TABLE evidence DROP CONSTRAINT IF EXISTS check_longitude",
            state_operations=[
                migrations.AddConstraint(
                    model_name="evidence",
                    constraint=models.CheckConstraint(
                        condition=models.Q(longitude__range=(-180, 180)),
                        name="check_longitude",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE verifications DROP CONSTRAINT IF EXISTS check_outcome,
                ADD CONSTRAINT check_outcome CHECK (outcome IN ('approved', 'rejected', 'pending')) NOT VALID
                """,
                "ALTER TABLE verifications VALIDATE CONSTRAINT check_outcome",
            ],
            reverse_sql="ALTER TABLE verifications DROP CONSTRAINT IF EXISTS check_outcome",
            state_operations=[
                migrations.AddConstraint(
                    model_name="verification",
                    constraint=models.CheckConstraint(
                        condition=models.Q(outcome__in=["approved", "rejected", "pending"]),
                        name="check_outcome",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE verifications DROP CONSTRAINT IF EXISTS check_score,
                ADD CONSTRAINT check_score CHECK (evidence_quality_score BETWEEN 0 AND 1) NOT VALID
                """,
                "ALTER TABLE verifications VALIDATE CONSTRAINT check_score",
            ],
            reverse_sql="ALTER TABLE verifications DROP CONSTRAINT IF EXISTS check_score",
            state_operations=[
                migrations.AddConstraint(
                    model_name="verification",
                    constraint=models.CheckConstraint(
                        condition=models.Q(evidence_quality_score__range=(0, 1)),
                        name="check_score",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE webhook_events DROP CONSTRAINT IF EXISTS check_webhook_status,
                ADD CONSTRAINT check_webhook_status CHECK (status IN ('pending', 'processing', 'delivered', 'failed')) NOT VALID
                """,
                "ALTER TABLE webhook_events VALIDATE CONSTRAINT check_webhook_status",
            ],
            reverse_sql="ALTER TABLE webhook_events DROP CONSTRAINT IF EXISTS check_webhook_status",
            state_operations=[
                migrations.AddConstraint(
                    model_name="webhookevent",
                    constraint=models.CheckConstraint(
                        condition=models.Q(status__in=["pending", "processing", "delivered", "failed"]),
                        name="check_webhook_status",
                    ),
                ),
            ],
        ),
    ]
