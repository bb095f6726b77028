import django.contrib.postgres.functions
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210131000_create_skills_table"),
    ]

    operations = [
        migrations.CreateModel(
            name="Vouch",
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
                    "weight_hint",
                    models.CharField(
                        blank=True,
                        choices=[("strong", "Strong"), ("moderate", "Moderate"), ("light", "Light")],
                        max_length=20,
                        null=True,
                    ),
                ),
                ("message", models.TextField(blank=True, null=True)),
                ("markov_vouch_id", models.CharField(blank=True, max_length=100, null=True)),
                (
                    "skill",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="vouches",
                        to="accounts.skill",
                    ),
                ),
                (
                    "vouchee",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="vouches_received",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "voucher",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="vouches_given",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "vouches",
                "db_table": "vouches",
                "indexes": [
                    models.Index(fields=["voucher"], name="idx_vouches_voucher"),
                    models.Index(fields=["vouchee"], name="idx_vouches_vouchee"),
                    models.Index(fields=["skill"], name="idx_vouches_skill"),
                    models.Index(fields=["-created_at"], name="idx_vouches_created"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("skill__isnull", False)),
                        fields=("voucher", "vouchee", "skill"),
                        name="idx_vouches_unique",
                    ),
                    models.UniqueConstraint(fields=("markov_vouch_id",), name="idx_vouches_markov_id"),
                ],
            },
        ),
    ]
