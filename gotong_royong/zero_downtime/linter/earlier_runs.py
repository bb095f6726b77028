"""Which rows do earlier runs leave that no migration makes? The content types and permissions of ``post_migrate``.

Code of a migration finds those of the models of earlier runs, as it does with Django's own ``migrate``.
"""

from contextlib import suppress

from django.apps import apps
from django.contrib.auth.management import create_permissions
from django.contrib.contenttypes.management import create_contenttypes
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.state import ModelState

from ..running.states import ModelKey, Rolling

THEIR_OWN = {("contenttypes", "contenttype"), ("auth", "permission")}


class EarlierRuns:
    """Does in the scratch database what ``post_migrate`` does at the end of each run.

    Args:
        rolling: the state at the end of the last run, if there was one.
    """

    def __init__(self, rolling: Rolling | None = None) -> None:
        self._known: dict[ModelKey, ModelState] = dict(rolling.state.models) if rolling else {}

    def end(self, connection: BaseDatabaseWrapper, rolling: Rolling) -> None:
        """Insert what is missing for the models that are new or have changed, if there is a table for it."""
        models = rolling.state.models
        new = {key for key, model in models.items() if self._known.get(key) is not model}
        self._known = dict(models)
        if not new or not THEIR_OWN & models.keys():
            return
        state = rolling.excerpt(new | (THEIR_OWN & models.keys()))
        for label in sorted({app for app, _ in new}):
            for make in (create_contenttypes, create_permissions):
                with suppress(Exception), transaction.atomic(connection.alias):
                    make(apps.get_app_config(label), verbosity=0, using=connection.alias, apps=state.apps)
