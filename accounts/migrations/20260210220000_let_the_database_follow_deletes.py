"""Give the foreign keys their ON DELETE, for raw SQL as well as for Django."""

from django.db import migrations

from gotong_royong.foreign_keys import on_delete


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210212000_copy_users_into_profiles"),
    ]

    operations = [
        on_delete("profiles", "user_id", "users", "CASCADE", name="profiles_user_id_36580373_fk_users_id"),
        on_delete("user_skills", "user_id", "users", "CASCADE", name="user_skills_user_id_8140060b_fk_users_id"),
        on_delete("user_skills", "skill_id", "skills", "CASCADE", name="user_skills_skill_id_1a55c9b3_fk_skills_id"),
        on_delete("vouches", "voucher_id", "users", "CASCADE", name="vouches_voucher_id_e938912e_fk_users_id"),
        on_delete("vouches", "vouchee_id", "users", "CASCADE", name="vouches_vouchee_id_b926e24e_fk_users_id"),
        on_delete("vouches", "skill_id", "skills", "SET NULL", name="vouches_skill_id_5bce4310_fk_skills_id"),
        on_delete("reputation_cache", "user_id", "users", "CASCADE", name="reputation_cache_user_id_d9053e37_fk_users_id"),
    ]
