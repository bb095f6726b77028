"""What is done to the rows of this app's tables in the background; ``manage.py backfill list`` shows how far it is."""

from django.db.models import Q, TextField, Value
from django.db.models.functions import Cast, Concat

from gotong_royong.zero_downtime.backfills import Declaration

MARKOV_USER_ID = Concat(Value("gotong_royong:"), Cast("id", TextField()))


class PopulateMarkovUserIds(Declaration):
    """Give every user of before the trigger a ``markov_user_id``."""

    model = "accounts.User"
    where = Q(markov_user_id=None)
    update = {"markov_user_id": MARKOV_USER_ID}
    reverse = "accounts.clear_markov_user_ids"


class ClearMarkovUserIds(Declaration):
    """Take those of ``PopulateMarkovUserIds`` back."""

    model = "accounts.User"
    where = Q(markov_user_id=MARKOV_USER_ID)
    update = {"markov_user_id": None}
