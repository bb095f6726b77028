"""Django's ``showmigrations``, with what the ledger records of each migration."""

import re
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from django.core.management.commands import showmigrations
from django.db.migrations.loader import MigrationLoader

from ...exceptions import LedgerNotReadable
from ...running import history, recall
from ...running.executor import Executor
from ...running.loader import Loader
from ...running.plan import only_looking
from ...stages import Key
from .. import chain

COLUMNS = "run", "faked", "checksum", "longest_blocked", "started_at", "finished_at"
SHOWN = re.compile(r" ?\[[X -]\] +(?:(?P<app>\w+)\.)?(?P<name>\w+)")


class Command(chain.Chained, showmigrations.Command):
    help = (
        "Shows all available migrations for the current project, the run that applied each, and which are half done or "
        "half taken back because a run failed in them."
    )

    def show_list(self, connection: Any, app_names: Any = None) -> None:
        self._show(super().show_list, connection, app_names)

    def show_plan(self, connection: Any, app_names: Any = None) -> None:
        self._show(super().show_plan, connection, app_names)

    def _show(self, show: Callable[..., None], connection: Any, app_names: Any) -> None:
        """Catch the lines that Django would print, and print them in columns with the ledger's record."""
        stdout, lines, said = self.stdout, list[tuple[Any, ...]](), list[str]()
        cells: dict[Key, list[str]] = {}
        with only_looking(connection):
            self.stdout = SimpleNamespace(write=lambda *line: lines.append(line))  # type: ignore[assignment]
            try:
                with chain.in_place(showmigrations, MigrationLoader=_loader):
                    show(connection, app_names)
            finally:
                self.stdout = stdout
            keys = list(_keys(text for text, *_ in lines))
            try:
                executor = Executor(connection)
                nodes = executor.loader.graph.nodes
                steps = history.applied_by(connection.alias, executor.loader, *COLUMNS)
                halves, lost = recall.halves(executor), recall.all_lost(executor)
                shown = (key for key in keys if key in steps)
                edited = [key for key in shown if recall.is_edited(nodes[key], steps[key])]
            except LedgerNotReadable as error:
                said.append(str(error))
            else:
                for key in sorted(halves.keys() - set(keys)):
                    if key[0] in (app_names or [key[0]]):
                        said.append(f"{'.'.join(key)} is {halves[key]}.")
                for key in steps.keys() | halves.keys():
                    remarks = filter(None, ["edited since" if key in edited else "", halves.get(key)])
                    cells[key] = [*(_cells(steps[key]) if key in steps else [""] * 4), "; ".join(remarks)]
                if names := [".".join(key) for key in lost if key[0] in (app_names or [key[0]])]:
                    said.append(
                        f"django_migrations has lost these, and migrate records them again: {', '.join(names)}."
                    )
                said += [recall.warning([nodes[key] for key in edited])] * bool(edited)
        rows = [(line[0], cells.get(key, []), line[1:]) for key, line in zip(keys, lines, strict=True)]
        widths = [max(map(len, column)) for column in zip(*(each for _, each, _ in rows if each), strict=True)]
        indent = max((len(text) for text, each, _ in rows if each), default=0) + 1
        for text, each, style in rows:
            line = "  ".join(map(str.ljust, [text, *each], [indent, *widths])).rstrip() if each else text
            self.stdout.write(line, *style)
        for text in said:
            self.stdout.write(f"\n{text}", self.style.WARNING)


def _loader(connection: Any, **options: Any) -> MigrationLoader:
    """Return our loader, which knows what is applied though its row is lost; Django's if it may not read the ledger."""
    try:
        return Loader(connection, **options)
    except LedgerNotReadable:
        return MigrationLoader(connection, **options)


def _keys(texts: Iterable[str]) -> Iterator[Key]:
    """Yield the migration of each line; an empty name for a line without one."""
    app = ""
    for text in texts:
        if text.isidentifier():
            app = text
        match = SHOWN.match(text)
        yield (match["app"] or app, match["name"]) if match else ("", "")


def _cells(step: Any) -> list[str]:
    seconds = (step.finished_at - step.started_at).total_seconds()
    took = f"{'faked':>9}" if step.faked else f"{seconds:7.2f} s"
    when = f"{step.started_at:%Y-%m-%d %H:%M %Z}".rstrip()
    return [f"run {step.run}", when, took, "" if step.faked else f"blocked {step.longest_blocked:.2f} s"]
