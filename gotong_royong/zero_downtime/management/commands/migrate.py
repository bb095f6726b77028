"""Django's ``migrate``; what it says of unmade migrations is found by the autodetector that ``makemigrations`` uses."""

from django.core.management.commands import migrate

from gotong_royong.zero_downtime.autodetector import MigrationAutodetector


class Command(migrate.Command):
    autodetector = MigrationAutodetector
