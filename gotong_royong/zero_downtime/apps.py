"""What does Django call this app, and what did the settings say before anything changed them?"""

from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.conf import settings

try:
    import psycopg  # noqa: F401
except ImportError:
    HAS_DRIVER = False
else:
    HAS_DRIVER = True


class ZeroDowntimeConfig(AppConfig):
    """The app. Without psycopg 3 it brings no models and no commands, only the check that says so."""

    name = "gotong_royong.zero_downtime"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
    configured: dict[str, str] = {}
    """The name of each database when Django started: test runners change it later."""

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        if not HAS_DRIVER:
            self.module, self.path = ModuleType(app_name), ""

    def ready(self) -> None:
        from gotong_royong.zero_downtime import checks  # noqa: F401  (registers them)

        self.configured = {alias: str(database.get("NAME")) for alias, database in settings.DATABASES.items()}
