"""Say what migrations lock, scan, rewrite and break, by running them in a scratch database."""

import gc
from argparse import ArgumentParser
from contextlib import ExitStack
from typing import Any

from django.core.checks import ERROR, WARNING
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime import mistakes
from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError, counted
from gotong_royong.zero_downtime.linter import lint, reports, selection
from gotong_royong.zero_downtime.loader import without_collecting
from gotong_royong.zero_downtime.management.commands.migrate import sigterm_like_ctrl_c

FORMATS = {"json": reports.as_json, "github": reports.github, "sarif": reports.sarif}


class Command(mistakes.Plain):
    help = (
        "Runs migrations in a scratch database, up and down, and says whom they would keep waiting and what they break."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("app_label", nargs="?", help="Only this app's migrations.")
        parser.add_argument("migration_name", nargs="?", help="Only the one whose name begins so.")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--all", action="store_true", help="Those of installed packages, too, and of before LINT_AFTER."
        )
        which.add_argument(
            "--since", metavar="REV", help="Those whose files changed since the branch left this revision."
        )
        which.add_argument("--unapplied", action="store_true", help="Those that the database has not.")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
        parser.add_argument("--format", default="text", choices=["text", *FORMATS])
        parser.add_argument("--fail-level", default="ERROR", choices=["ERROR", "WARNING"], help="Default: ERROR.")
        parser.add_argument(
            "--explain", action="store_true", help="Show every statement, what it locks, scans and changes."
        )
        parser.add_argument("--rules", action="store_true", help="Only print what the rules are.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["rules"]:
            self.stdout.write(reports.document(), ending="")
            return
        if options["explain"] and options["format"] != "text":
            raise ZeroDowntimeError("--explain prints a table to read. Leave out --explain or --format.")
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise ZeroDowntimeError(f"Database {connection.alias!r} is not PostgreSQL, whose locks are what is judged.")
        found, seen = [], 0
        with ExitStack() as stack:
            stack.callback(gc.unfreeze)
            stack.enter_context(sigterm_like_ctrl_c())
            with without_collecting():
                loader = MigrationLoader(None)
            for trace, broken in lint(connection, loader, self.chosen(loader, connection, options), note=self.note):
                seen += 1
                found += broken
                if options["explain"]:
                    self.stdout.writelines(f"{line}\n" for line in reports.explanation(trace))
                if options["format"] == "text":
                    self.stdout.writelines(f"{line}\n" for line in reports.text(broken, self.style))
        if options["format"] != "text":
            self.stdout.writelines(f"{line}\n" for line in FORMATS[options["format"]](found))
        errors = sum(one.level >= ERROR for one in found)
        numbers = {"migration": seen, "error": errors, "warning": len(found) - errors}
        said = ", ".join(counted(number, noun) for noun, number in numbers.items()) + "."
        if any(one.level >= (ERROR if options["fail_level"] == "ERROR" else WARNING) for one in found):
            raise ZeroDowntimeError(said)
        if options["format"] == "text" and options["verbosity"]:
            self.stdout.write(self.style.SUCCESS(said))

    def note(self, text: str) -> None:
        self.stderr.write(self.style.WARNING(text))

    def chosen(self, loader: MigrationLoader, connection: Any, options: dict[str, Any]) -> selection.Selection:
        if options["since"]:
            keys = selection.changed_since(loader, options["since"])
        elif options["unapplied"]:
            keys = selection.unapplied(loader, connection)
        elif options["all"] or options["migration_name"]:
            keys = list(loader.graph.nodes)
        elif options["app_label"]:
            keys = selection.after_baseline(loader, loader.graph.nodes)
        else:
            keys = selection.own(loader)
        if options["app_label"]:
            named = selection.named(loader, options["app_label"], options["migration_name"] or "")
            keys = [key for key in keys if key in named]
        return selection.select(loader, keys, one_deploy=bool(options["since"] or options["unapplied"]))
