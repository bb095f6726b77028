"""Which backfills does this app have? ``manage.py backfill list`` shows their progress."""

from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet, TextField, Value
from django.db.models.functions import Cast, Concat

from gotong_royong.zero_downtime.backfills import BackfillDeclaration

MARKOV_USER_ID = Concat(Value("gotong_royong:"), Cast("id", TextField()))


class PopulateMarkovUserIDs(BackfillDeclaration):
    """Give a ``markov_user_id`` to every user from before the trigger."""

    model = "accounts.User"
    where = Q(markov_user_id=None)
    update = {"markov_user_id": MARKOV_USER_ID}
    reverse = "accounts.clear_markov_user_ids"


class ClearMarkovUserIDs(BackfillDeclaration):
    """Take back what ``PopulateMarkovUserIDs`` set."""

    model = "accounts.User"
    where = Q(markov_user_id=MARKOV_USER_ID)
    update = {"markov_user_id": None}


# ON CONFLICT: the trigger has made the profile of a user who was changed meanwhile, and its values are newer.
INTO_PROFILES = """
    INSERT INTO profiles (user_id, bio, location, avatar_url)
    SELECT id, bio, location, avatar_url FROM users WHERE id = ANY(%s) ON CONFLICT DO NOTHING
"""
INTO_USERS = """
    UPDATE users SET bio = profiles.bio, location = profiles.location, avatar_url = profiles.avatar_url
    FROM profiles WHERE user_id = id AND id = ANY(%s)
    AND (users.bio, users.location, users.avatar_url)
        IS DISTINCT FROM (profiles.bio, profiles.location, profiles.avatar_url)
"""


class CopyUsersIntoProfiles(BackfillDeclaration):
    """Give a profile to every user from before the split. In SQL: the models no longer have the columns."""

    model = "accounts.User"
    where = Q(profile=None)
    reverse = "accounts.copy_profiles_into_users"

    def process(self, batch: QuerySet[Any]) -> None:
        with connections[batch.db].cursor() as cursor:
            cursor.execute(INTO_PROFILES, [list(batch.values_list("pk", flat=True))])


class CopyProfilesIntoUsers(BackfillDeclaration):
    """Copy back to ``users`` what was written to the profiles since ``CopyUsersIntoProfiles``."""

    model = "accounts.User"

    def process(self, batch: QuerySet[Any]) -> None:
        with connections[batch.db].cursor() as cursor:
            cursor.execute(INTO_USERS, [list(batch.values_list("pk", flat=True))])
