from django.db import migrations

import contributions.models


class Migration(migrations.Migration):
    dependencies = [
        ("contributions", "20260210200000_create_contribution_type_enum"),
    ]

    operations = [
        migrations.AddField(
            model_name="contribution",
            name="contribution_type",
            field=contributions.models.NativeEnumField(
                choices=[
                    ("task_completion", "Task Completion"),
                    ("code_review", "Code Review"),
                    ("documentation", "Documentation"),
                    ("mentoring", "Mentoring"),
                    ("event_organization", "Event Organization"),
                    ("community_service", "Community Service"),
                    ("custom", "Custom"),
                ],
                db_default="task_completion",
                enum="contribution_type",
            ),
        ),
    ]
