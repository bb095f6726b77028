"""Show what migrations lock, scan, rewrite and break, by running them in a scratch database."""

from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from importlib import import_module
from typing import Any

from django.core.checks import ERROR, WARNING
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from ...exceptions import ZeroDowntimeError, counted
from ...linter import lint, reports, selection
from ...linter.apart import apart
from ...linter.facts import Failure
from ...linter.registry import as_found, as_told
from ...linter.runner import LIMIT
from ...linter.sandbox import watch
from ...linter.scratch import Place, place
from ...linter.sizes import sizes, weighed
from ...running import diagnosis
from ...stages import Key
from ..base import ZeroDowntimeCommand
from .migrate import sigterm_like_ctrl_c

FORMATS = {"json": reports.as_json, "github": reports.github, "sarif": reports.sarif}


class Command(ZeroDowntimeCommand):
    help = "Runs migrations in a scratch database, up and down, and says whom they would block and what they break."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("app_label", nargs="?", help="Only this app's migrations.")
        parser.add_argument("migration_name", nargs="?", help="Only the one whose name begins with this.")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--all", action="store_true", help="Also those of installed packages, and those before LINT_AFTER."
        )
        which.add_argument(
            "--since", metavar="REV", help="Those whose files changed since the branch left this revision."
        )
        which.add_argument("--unapplied", action="store_true", help="Those that are not applied to the database.")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
        parser.add_argument("--format", default="text", choices=["text", *FORMATS])
        parser.add_argument("--fail-level", default="ERROR", choices=["ERROR", "WARNING"], help="Default: ERROR.")
        parser.add_argument(
            "--explain", action="store_true", help="Show every statement and what it locks, scans and changes."
        )
        parser.add_argument("--rules", action="store_true", help="Only print the rules.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["rules"]:
            self.stdout.write(reports.document(), ending="")
            return
        if options["explain"] and options["format"] != "text":
            raise ZeroDowntimeError("--explain prints a table to read. Leave out --explain or --format.")
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise ZeroDowntimeError(
                f"Database {connection.alias!r} is not PostgreSQL, whose locks the linter judges. Name one with "
                "--database."
            )
        applied: Collection[Key] = MigrationRecorder(connection).applied_migrations() if options["unapplied"] else ()
        known = sizes(connection) if options["unapplied"] else {}
        found, seen = [], 0
        with ExitStack() as stack:
            stack.enter_context(sigterm_like_ctrl_c())

            def start() -> Place:
                return stack.enter_context(place(connection, self.note))

            def work(
                stopped: Mapping[Key, Failure], told: Collection[Key], ask: Callable[[], Any]
            ) -> Iterator[tuple[Key, Failure | None, Any]]:
                loader = loaded()
                chosen = self.chosen(loader, applied, options).without(told)
                judged = lint(connection, loader, chosen, limit=LIMIT, stopped=stopped, where=lambda: Place(*ask()))
                for trace, broken in judged:
                    explained = list(reports.explanation(trace)) if options["explain"] else []
                    key = trace.migration.app_label, trace.migration.name
                    yield key, trace.up.failure, (explained, list(map(as_told, broken)))

            for explained, told in stack.enter_context(closing(apart(work, start))):
                broken = [weighed(as_found(one), known) for one in told]
                seen += 1
                found += broken
                self.stdout.writelines(f"{line}\n" for line in explained)
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

    def chosen(self, loader: MigrationLoader, applied: Collection[Key], options: dict[str, Any]) -> selection.Selection:
        if options["since"]:
            keys = selection.changed_since(loader, options["since"])
        elif options["unapplied"]:
            keys = selection.unapplied(loader, applied)
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


def loaded() -> MigrationLoader:
    """Load all migrations; name each to the watching process first, because a module may do anything."""
    for path in diagnosis.files():
        watch.go_on(f"loading {path}")
        import_module(path)
    watch.go_on("")
    return MigrationLoader(None)
