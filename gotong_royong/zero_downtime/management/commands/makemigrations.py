"""Django's ``makemigrations``, with names of a timestamp and a description, and safe pieces for each stage."""

import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from django.core.management import CommandError, CommandParser
from django.core.management.commands import makemigrations
from django.db import Error, connection
from django.db.migrations.loader import MigrationLoader

from ...authoring.autodetector import MigrationAutodetector, describe_merge, extending, rename, timestamps
from ...authoring.writer import Writer
from ...stages import Key, Stage
from .. import chain

WHEN = {Stage.PRE_DEPLOY: "Before the deploy", Stage.POST_DEPLOY: "After the deploy"}


class Command(chain.Chained, makemigrations.Command):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.autodetector = extending(type(self).autodetector)  # type: ignore[misc, arg-type]

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--no-rewrite",
            action="store_false",
            dest="rewrite",
            help="Write Django's own operations in one file, and not the safe steps in a file for each stage.",
        )

    def handle(self, *app_labels: str, **options: Any) -> None:
        if options.get("rewrite", True) and not (options["check_changes"] or options["update"] or options["merge"]):
            self.autodetector = type("Rewriting", (self.autodetector,), {"rewrites": True})  # type: ignore[misc]
        with warnings.catch_warnings() if self._called_from_command_line else nullcontext():
            if self._called_from_command_line:
                warnings.showwarning = self.warn
            super().handle(*app_labels, **options)

    def warn(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """Print Django's warning in one line, such as that of a database whose history it cannot read."""
        self.stderr.write(f"Warning: {' '.join(str(message).split())}", self.style.WARNING)

    def write_to_last_migration_files(self, changes: dict[str, Any]) -> None:
        loader = MigrationLoader(None)
        for app_label in changes:
            for last in map(loader.graph.nodes.get, loader.graph.leaf_nodes(app_label)):
                if last and (not last.atomic or getattr(last, "stage", None) == Stage.POST_DEPLOY):
                    raise CommandError(
                        f"{last} is not atomic or comes after the deploy, so other changes have no place in it. Delete "
                        "the files of the last change, if they are applied nowhere, and run makemigrations without "
                        "--update."
                    )
        super().write_to_last_migration_files(changes)

    def write_migration_files(
        self, changes: dict[str, Any], update_previous_migration_paths: dict[str, str] | None = None
    ) -> None:
        """Rename the migration that ``--update`` changed: Django keeps only four characters of its old name."""
        updated = [*filter(None, [update_previous_migration_paths])]  # Django passes it for --update only
        for paths in updated:
            loader = MigrationLoader(connection)
            previous = [(app_label, Path(path).stem) for app_label, path in paths.items()]
            state = loader.project_state(previous, at_end=False)
            rename(changes, loader.graph, state, MigrationAutodetector.now(), self.migration_name)
        for migration in (migrations := [one for some in changes.values() for one in some]):
            try:
                Writer(migration).as_string()
            except ValueError as error:
                raise CommandError(
                    f"{migration} cannot be written, so nothing was: {' '.join(str(error).split())}"
                ) from None
        with chain.in_place(makemigrations, MigrationWriter=Writer):
            super().write_migration_files(changes, *updated)
        if self.verbosity >= 1 and not updated:
            self.say_when([migration for migration in migrations if hasattr(migration, "stage")])

    def say_when(self, pieces: list[Any]) -> None:
        """Print whether each migration comes before or after the deploy, and what would hold it back."""
        late = _late() if pieces else set()
        for migration in pieces:
            self.log(f"  {WHEN[migration.stage]}: {migration}")
            if migration.stage == Stage.PRE_DEPLOY and (parents := late & {*migration.dependencies}):
                needed = ", ".join(".".join(parent) for parent in sorted(parents))
                self.log(
                    f"    It needs {needed}, which comes after the deploy and is not applied here. Until it is, "
                    f"migrate --pre-deploy leaves {migration} out."
                )

    def handle_merge(self, loader: MigrationLoader, conflicts: dict[str, Any]) -> None:
        """Merge app by app: Django adds one to the highest ``parse_number`` of an app's leaves."""
        name, stamps = self.migration_name, timestamps(loader.graph, MigrationAutodetector.now())
        for app_label, leaves in sorted(conflicts.items()):
            before = int(next(stamps)) - 1
            parse_number = staticmethod(lambda leaf, before=before: before)
            self.autodetector = type("Numbered", (self.autodetector,), {"parse_number": parse_number})  # type: ignore[misc]
            self.migration_name = name or describe_merge(leaves)
            super().handle_merge(loader, {app_label: leaves})


def _late() -> set[Key]:
    """Return the migrations that come after the deploy and are not applied here; none if that is not known."""
    with suppress(Error, CommandError):
        loader = MigrationLoader(connection)
        return {
            key
            for key, migration in loader.graph.nodes.items()
            if getattr(migration, "stage", None) == Stage.POST_DEPLOY and key not in loader.applied_migrations
        }
    return set()
