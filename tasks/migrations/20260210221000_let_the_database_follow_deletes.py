"""Give the foreign keys their ON DELETE, for raw SQL as well as for Django."""

from django.db import migrations

from gotong_royong.foreign_keys import on_delete


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("tasks", "20260210191000_add_check_constraints_tasks_and_task_assignments"),
    ]

    operations = [
        on_delete("tasks", "creator_id", "users", "CASCADE", name="tasks_creator_id_4a8cec22_fk_users_id"),
        on_delete("tasks", "assignee_id", "users", "SET NULL", name="tasks_assignee_id_7880b7f5_fk_users_id"),
        on_delete("task_skills", "task_id", "tasks", "CASCADE", name="task_skills_task_id_5c09b973_fk_tasks_id"),
        on_delete("task_skills", "skill_id", "skills", "CASCADE", name="task_skills_skill_id_e1af062f_fk_skills_id"),
        on_delete("task_assignments", "task_id", "tasks", "CASCADE", name="task_assignments_task_id_dbef494b_fk_tasks_id"),
        on_delete("task_assignments", "user_id", "users", "CASCADE", name="task_assignments_user_id_8237dbae_fk_users_id"),
        on_delete("task_assignments", "assigned_by_id", "users", "SET NULL", name="task_assignments_assigned_by_id_1d9bda79_fk_users_id"),
    ]
