"""Refuse vouches of users for themselves.

Each constraint is added NOT VALID, which locks the table only for a moment, and validated by a second statement, which
blocks no reads and writes (https://www.postgresql.org/docs/current/sql-altertable.html).
"""

from django.db import migrations, models

from gotong_royong.zero_downtime.operations import IgnoreRules


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210141000_create_vouches_table"),
    ]

    operations = [
        IgnoreRules("W415", reason="No code that writes vouches was deployed before this."),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE vouches DROP CONSTRAINT IF EXISTS check_not_self_vouch,
                ADD CONSTRAINT check_not_self_vouch CHECK (NOT (voucher_id = vouchee_id)) NOT VALID
                """,
                "ALTER TABLE vouches VALIDATE CONSTRAINT check_not_self_vouch",
            ],
            reverse_sql="ALTER TABLE vouches DROP CONSTRAINT IF EXISTS check_not_self_vouch",
            state_operations=[
                migrations.AddConstraint(
                    model_name="vouch",
                    constraint=models.CheckConstraint(
                        condition=~models.Q(voucher=models.F("vouchee")),
                        name="check_not_self_vouch",
                    ),
                ),
            ],
        ),
    ]
