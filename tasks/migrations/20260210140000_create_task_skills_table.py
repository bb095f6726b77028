import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210131000_create_skills_table"),
        ("tasks", "20260210132000_create_tasks_table"),
    ]

    operations = [
        migrations.CreateModel(
            name="TaskSkill",
            fields=[
                ("created_at", models.DateTimeField(db_default=models.Func(function="now"), editable=False)),
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "task_id", "skill_id", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "skill",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="tasks",
                        to="accounts.skill",
                    ),
                ),
                (
                    "task",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="skills",
                        to="tasks.task",
                    ),
                ),
            ],
            options={
                "db_table": "task_skills",
                "indexes": [models.Index(fields=["skill"], name="idx_task_skills_skill")],
            },
        ),
    ]
