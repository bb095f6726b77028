import django.core.validators
import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210190000_add_check_constraints_vouches_and_user_skills"),
    ]

    operations = [
        migrations.CreateModel(
            name="Profile",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "bio",
                    models.TextField(
                        blank=True, null=True, validators=[django.core.validators.MaxLengthValidator(500)]
                    ),
                ),
                ("location", models.CharField(blank=True, max_length=255, null=True)),
                ("avatar_url", models.TextField(blank=True, null=True)),
            ],
            options={
                "db_table": "profiles",
            },
        ),
    ]
