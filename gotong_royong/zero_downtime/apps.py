"""What does Django call this app, and what did the settings say before anything changed them?"""

from django.apps import AppConfig
from django.conf import settings


class ZeroDowntimeConfig(AppConfig):
    name = "gotong_royong.zero_downtime"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
    configured: dict[str, str] = {}
    """The name of each database when Django started: test runners change it later."""

    def ready(self) -> None:
        from gotong_royong.zero_downtime import checks  # noqa: F401  (registers them)

        self.configured = {alias: str(database.get("NAME")) for alias, database in settings.DATABASES.items()}
