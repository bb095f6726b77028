from django.apps import AppConfig


class ZeroDowntimeConfig(AppConfig):
    name = "gotong_royong.zero_downtime"
    verbose_name = "Zero-downtime migrations"
