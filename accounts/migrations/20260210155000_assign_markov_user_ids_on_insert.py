"""Let a trigger give new users their ``markov_user_id``, before a backfill populates the old ones."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "20260210150000_add_check_constraint_vouches"),
    ]

    operations = [
        migrations.RunSQL(
            sql=[
                """
                CREATE OR REPLACE FUNCTION assign_markov_user_id() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    NEW.markov_user_id := 'gotong_royong:' || NEW.id;
                    RETURN NEW;
                END $$
                """,
                """
                CREATE OR REPLACE TRIGGER assign_markov_user_id BEFORE INSERT ON users
                FOR EACH ROW WHEN (NEW.markov_user_id IS NULL) EXECUTE FUNCTION assign_markov_user_id()
                """,
            ],
            reverse_sql=[
                "DROP TRIGGER IF EXISTS assign_markov_user_id ON users",
                "DROP FUNCTION IF EXISTS assign_markov_user_id()",
            ],
        ),
    ]
