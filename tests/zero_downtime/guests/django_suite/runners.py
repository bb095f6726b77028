"""How did each of Django's own tests end, without our app and with it?"""

import json
import os
import unittest
from pathlib import Path

from django.apps import apps
from django.db import connections
from django.test import TestCase
from django.test.runner import DiscoverRunner

OURS = "gotong_royong.zero_downtime"


def what_is_there(database):
    with database.cursor() as cursor:
        tables = {table.name for table in database.introspection.get_table_list(cursor)}
        if "django_migrations" not in tables:
            return tables, set()
        cursor.execute("SELECT app || name FROM django_migrations")
        return tables, {row[0] for row in cursor.fetchall()}


class Result(unittest.TextTestResult):
    """Knows of each test how it ended; of several subtests, whether one failed."""

    ended = {}
    before = {}
    """Of each database, its tables and what is recorded of migrations before the first test."""

    def stopTest(self, test):  # noqa: N802
        """Take away what a test that stopped halfway has left, so that no other fails for it."""
        super().stopTest(test)
        if self.ended.get(test.id()) in {"fails", "ends with an error"} and not isinstance(test, TestCase):
            for each in map(connections.__getitem__, getattr(test, "databases", ())):
                tables, recorded = self.before[each.alias]
                with each.cursor() as cursor:
                    for table in what_is_there(each)[0] - tables:
                        cursor.execute(f"DROP TABLE {each.ops.quote_name(table)} CASCADE")
                    if "django_migrations" in tables:
                        cursor.execute("DELETE FROM django_migrations WHERE NOT app || name = ANY(%s)", [[*recorded]])

    def addSuccess(self, test):  # noqa: N802
        super().addSuccess(test)
        self.ended.setdefault(test.id(), "passes")

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self.ended.setdefault(test.id(), "is skipped")

    def addFailure(self, test, error):  # noqa: N802
        super().addFailure(test, error)
        self.ended[test.id()] = "fails"

    def addError(self, test, error):  # noqa: N802
        super().addError(test, error)
        self.ended[test.id()] = "ends with an error"

    def addSubTest(self, test, subtest, error):  # noqa: N802
        super().addSubTest(test, subtest, error)
        if error:
            self.ended[test.id()] = "fails"


class Stock(DiscoverRunner):
    def get_resultclass(self):
        return Result

    def run_suite(self, suite, **options):
        Result.before = {each.alias: what_is_there(each) for each in connections.all()}
        result = super().run_suite(suite, **options)
        Path(os.environ["SUITE_RESULT"]).write_text(json.dumps(Result.ended))
        return result


class Ours(Stock):
    """With our app installed whatever a test says, our schema editor on every connection, and every run guarded.

    Files are called as Django calls them, so that all else that makemigrations does is compared.
    """

    def setup_databases(self, **options):
        from gotong_royong.zero_downtime.authoring import autodetector
        from gotong_royong.zero_downtime.management.commands import makemigrations
        from gotong_royong.zero_downtime.postgres.editors import schema_editor_class

        autodetector.rename = makemigrations.rename = lambda *named: None
        del makemigrations.Command.handle_merge
        for connection in connections.all():
            type(connection).SchemaEditorClass = schema_editor_class(connection.SchemaEditorClass)
        for name in ("set_available_apps", "set_installed_apps"):

            def with_ours(installed, real=getattr(apps, name)):  # noqa: B008
                real([OURS, *(app for app in installed if app != OURS)])

            setattr(apps, name, with_ours)
        return super().setup_databases(**options)

    def run_suite(self, suite, **options):
        for app in apps.get_app_configs():
            type(app).configured = {}
            vars(app).pop("configured", None)
        return super().run_suite(suite, **options)
