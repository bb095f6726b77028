from decimal import Decimal

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210160000_populate_markov_user_ids"),
    ]

    operations = [
        migrations.CreateModel(
            name="ReputationCache",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="reputation",
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("reputation_score", models.DecimalField(decimal_places=2, max_digits=10)),
                ("tier", models.CharField(blank=True, max_length=50, null=True)),
                ("contributions_count", models.IntegerField(blank=True, db_default=0, null=True)),
                ("vouches_received", models.IntegerField(blank=True, db_default=0, null=True)),
                ("cached_at", models.DateTimeField(blank=True, db_default=models.Func(function="now"), null=True)),
            ],
            options={
                "verbose_name": "cached reputation",
                "db_table": "reputation_cache",
                "indexes": [
                    models.Index(fields=["-reputation_score"], name="idx_reputation_cache_score"),
                    models.Index(fields=["tier"], name="idx_reputation_cache_tier"),
                    models.Index(fields=["cached_at"], name="idx_reputation_cache_cached_at"),
                ],
            },
        ),
        migrations.CreateModel(
            name="UserSkill",
            fields=[
                ("created_at", models.DateTimeField(db_default=models.Func(function="now"), editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "user_id", "skill_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "proficiency_level",
                    models.DecimalField(
                        blank=True, db_default=Decimal("0.00"), decimal_places=2, max_digits=3, null=True
                    ),
                ),
                ("endorsements_count", models.IntegerField(blank=True, db_default=0, null=True)),
                ("updated_at", models.DateTimeField(auto_now=True, db_default=models.Func(function="now"))),
                (
                    "skill",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="users",
                        to="accounts.skill",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="skills",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "db_table": "user_skills",
                "indexes": [
                    models.Index(fields=["skill"], name="idx_user_skills_skill"),
                    models.Index(fields=["-proficiency_level"], name="idx_user_skills_proficiency"),
                ],
            },
        ),
    ]
