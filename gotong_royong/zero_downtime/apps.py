from django.apps import AppConfig


class ZeroDowntimeConfig(AppConfig):
    name = "gotong_royong.zero_downtime"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Zero-downtime migrations"
