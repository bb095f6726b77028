"""What does Django call this app, and what did the settings say before anything changed them?"""

from types import ModuleType
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import TEST_DATABASE_PREFIX

try:
    import psycopg  # noqa: F401
except ImportError:
    HAS_DRIVER = False
else:
    HAS_DRIVER = True

APP, NAME = "zero_downtime", __package__
"""The label of the app, and the name under which it is installed."""


class ZeroDowntimeConfig(AppConfig):
    """The app. Without psycopg 3 it brings no models and no commands, only the check that says so."""

    name = NAME
    label = APP
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
    configured: dict[str, str] = {}
    """The name of each database when Django started: test runners change it later."""

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        if not HAS_DRIVER:
            self.module, self.path = ModuleType(app_name), ""

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)

        self.configured = {alias: str(database.get("NAME")) for alias, database in settings.DATABASES.items()}


def why_not_guarded(connection: BaseDatabaseWrapper) -> str:
    """Say why runs on this database are not guarded; nothing if they are.

    A database is one of tests if its name was changed since Django started, as ``create_test_db`` and the clones of
    parallel tests do, and is the name that these give. What the settings call ``test_…`` is a database like any other.
    """
    if connection.vendor != "postgresql":
        return f"{connection.alias} is not a PostgreSQL database"
    configured = apps.get_app_config(APP).configured.get(connection.alias)  # type: ignore[attr-defined]
    name = str(connection.settings_dict["NAME"])
    made = connection.settings_dict["TEST"]["NAME"] or f"{TEST_DATABASE_PREFIX}{configured}"
    if configured in {None, name} or not name.startswith(str(made)):
        return ""
    return f"Django's test runner made the database {name}"
