"""What does Django call this app, which has the models of the ledger and of the backfills?"""

from django.apps import AppConfig


class ZeroDowntimeConfig(AppConfig):
    name = "gotong_royong.zero_downtime"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
