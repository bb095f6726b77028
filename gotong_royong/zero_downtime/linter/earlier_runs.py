"""What has an earlier run left that no migration has made? Its ``post_migrate``: content types and permissions.

Code that asks for the content type of a model, or for a permission, finds those of the models of earlier runs, as it
does with Django's own ``migrate``, and goes on.
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
    """Ends a run after another, in the scratch database.

    Args:
        rolling: the state that the runs have led to already, if any have ended.
    """

    def __init__(self, rolling: Rolling | None = None) -> None:
        self._known: dict[ModelKey, ModelState] = dict(rolling.state.models) if rolling else {}

    def end(self, connection: BaseDatabaseWrapper, rolling: Rolling) -> None:
        """Make what is missing for the models that are new or have changed; without a table for it, nothing."""
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
