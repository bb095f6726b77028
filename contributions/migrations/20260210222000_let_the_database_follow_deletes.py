"""Give the foreign keys their ON DELETE, for raw SQL as well as for Django."""

from django.db import migrations

from gotong_royong.foreign_keys import on_delete


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("contributions", "20260210202000_add_index_contributions_type"),
    ]

    operations = [
        on_delete("contributions", "user_id", "users", "CASCADE", name="contributions_user_id_350f1265_fk_users_id"),
        on_delete("contributions", "task_id", "tasks", "SET NULL", name="contributions_task_id_e2d9668c_fk_tasks_id"),
        on_delete("evidence", "contribution_id", "contributions", "CASCADE", name="evidence_contribution_id_b49e2a2a_fk_contributions_id"),
        on_delete("witnesses", "evidence_id", "evidence", "CASCADE", name="witnesses_evidence_id_c2ab3424_fk_evidence_id"),
        on_delete("verifications", "contribution_id", "contributions", "CASCADE", name="verifications_contribution_id_308b285b_fk_contributions_id"),
        on_delete("verifications", "verifier_id", "users", "CASCADE", name="verifications_verifier_id_d9909d13_fk_users_id"),
    ]
