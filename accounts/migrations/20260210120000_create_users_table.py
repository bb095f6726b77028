import django.contrib.postgres.functions
import django.core.validators
from django.db import migrations, models

import accounts.models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [
        migrations.CreateModel(
            name="User",
            fields=[
                ("last_login", models.DateTimeField(blank=True, null=True, verbose_name="last login")),
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
                    "username",
                    models.CharField(
                        help_text="3 to 50 letters, digits, dots, dashes, plus signs or underscores.",
                        max_length=50,
                        validators=[
                            django.core.validators.MinLengthValidator(3),
                            django.core.validators.RegexValidator(
                                "^[\\w.+-]+\\Z", "Use letters, digits, dots, dashes, plus signs and underscores only."
                            ),
                        ],
                    ),
                ),
                ("email", models.EmailField(max_length=255)),
                ("password", models.CharField(db_column="password_hash", max_length=255)),
                (
                    "markov_user_id",
                    accounts.models.MarkovUserIdField(blank=True, editable=False, max_length=100, null=True),
                ),
                (
                    "is_active",
                    models.BooleanField(
                        db_default=True, default=True, help_text="Unset this instead of deleting accounts."
                    ),
                ),
                (
                    "is_staff",
                    models.BooleanField(
                        db_default=False, default=False, help_text="May log in to the admin.", verbose_name="staff"
                    ),
                ),
                (
                    "is_superuser",
                    models.BooleanField(
                        db_default=False,
                        default=False,
                        help_text="Has every permission without being given it.",
                        verbose_name="superuser",
                    ),
                ),
                ("updated_at", models.DateTimeField(auto_now=True, db_default=models.Func(function="now"))),
                ("location", models.CharField(blank=True, max_length=255, null=True)),
                ("avatar_url", models.TextField(blank=True, null=True)),
                (
                    "groups",
                    models.ManyToManyField(
                        blank=True,
                        help_text="The groups this user belongs to. A user will get all permissions granted to each of their groups.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.group",
                        verbose_name="groups",
                    ),
                ),
                (
                    "user_permissions",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Specific permissions for this user.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.permission",
                        verbose_name="user permissions",
                    ),
                ),
            ],
            options={
                "db_table": "users",
                "constraints": [
                    models.UniqueConstraint(fields=("username",), name="idx_users_username"),
                    models.UniqueConstraint(fields=("email",), name="idx_users_email"),
                    models.UniqueConstraint(fields=("markov_user_id",), name="idx_users_markov_id"),
                ],
            },
        ),
    ]
