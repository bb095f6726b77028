"""Give every user of before the trigger a ``markov_user_id``; see ``_batches`` for how it is stopped and resumed."""

from django.db import migrations
from django.db.models import TextField, Value
from django.db.models.functions import Cast, Concat

from accounts.migrations._batches import in_batches

MARKOV_USER_ID = Concat(Value("gotong_royong:"), Cast("id", TextField()))


def populate(apps, schema_editor):
    users = apps.get_model("accounts", "User").objects.using(schema_editor.connection.alias)
    in_batches(
        users.filter(markov_user_id__isnull=True),
        lambda batch: batch.update(markov_user_id=MARKOV_USER_ID),
    )


def clear(apps, schema_editor):
    users = apps.get_model("accounts", "User").objects.using(schema_editor.connection.alias)
    in_batches(
        users.filter(markov_user_id=MARKOV_USER_ID),
        lambda batch: batch.update(markov_user_id=None),
    )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("accounts", "20260210155000_assign_markov_user_ids_on_insert"),
    ]

    operations = [
        migrations.RunPython(populate, clear),
    ]
