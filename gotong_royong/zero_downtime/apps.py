"""What is this app called, and on which databases does it guard runs?"""

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
    """The app. Without psycopg 3 it has no models and no commands, only the check that reports it."""

    name = NAME
    label = APP
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
    configured: dict[str, str] = {}
    """The name of each database when Django started; test runners change it later."""

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        if not HAS_DRIVER:
            self.module, self.path = ModuleType(app_name), ""

    def ready(self) -> None:
        from . import checks  # noqa: F401  (registers them)

        self.configured = {alias: str(database.get("NAME")) for alias, database in settings.DATABASES.items()}


def why_not_guarded(connection: BaseDatabaseWrapper) -> str:
    """Return why runs on this database are not guarded; an empty text if they are.

    A test database is one whose name changed since Django started and is a name that ``create_test_db`` or the clones
    of parallel tests give. A database that the settings call ``test_…`` is guarded.
    """
    if connection.vendor != "postgresql":
        return f"{connection.alias} is not a PostgreSQL database"
    configured = apps.get_app_config(APP).configured.get(connection.alias)  # type: ignore[attr-defined]
    name = str(connection.settings_dict["NAME"])
    made = connection.settings_dict["TEST"]["NAME"] or f"{TEST_DATABASE_PREFIX}{configured}"
    if configured in {None, name} or not name.startswith(str(made)):
        return ""
    return f"Django's test runner made the database {name}"
