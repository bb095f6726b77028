"""Check the values of vouches and skills of users.

Each constraint is added NOT VALID, which locks the table only for a moment, and validated by a second statement, which
blocks no reads and writes (https://www.postgresql.org/docs/current/sql-altertable.html).
"""

from django.db import migrations, models

from gotong_royong.zero_downtime.operations import IgnoreRules


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210180000_create_user_skills_and_reputation_cache_tables"),
    ]

    operations = [
        IgnoreRules("W415", reason="No code that writes skills of users was deployed before this."),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE vouches DROP CONSTRAINT IF EXISTS check_weight_hint,
                ADD CONSTRAINT check_weight_hint CHECK (weight_hint IN ('strong', 'moderate', 'light')) NOT VALID
                """,
                "ALTER TABLE vouches VALIDATE CONSTRAINT check_weight_hint",
            ],
            reverse_sql="ALTER TABLE vouches DROP CONSTRAINT IF EXISTS check_weight_hint",
            state_operations=[
                migrations.AddConstraint(
                    model_name="vouch",
                    constraint=models.CheckConstraint(
                        condition=models.Q(weight_hint__in=["strong", "moderate", "light"]),
                        name="check_weight_hint",
                    ),
                ),
            ],
        ),
        migrations.RunSQL(
            sql=[
                """
                ALTER TABLE user_skills DROP CONSTRAINT IF EXISTS check_proficiency,
                ADD CONSTRAINT check_proficiency CHECK (proficiency_level BETWEEN 0 AND 1) NOT VALID
                """,
                "ALTER TABLE user_skills VALIDATE CONSTRAINT check_proficiency",
            ],
            reverse_sql="ALTER TABLE user_skills DROP CONSTRAINT IF EXISTS check_proficiency",
            state_operations=[
                migrations.AddConstraint(
                    model_name="userskill",
                    constraint=models.CheckConstraint(
                        condition=models.Q(proficiency_level__range=(0, 1)),
                        name="check_proficiency",
                    ),
                ),
            ],
        ),
    ]
