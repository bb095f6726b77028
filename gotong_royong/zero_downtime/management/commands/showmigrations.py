"""Django's ``showmigrations``, where each applied migration also says what the ledger remembers of it."""

import re
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from django.core.management.commands import showmigrations
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime import history, mistakes
from gotong_royong.zero_downtime.stages import Key

COLUMNS = "run", "faked", "checksum", "longest_blocked", "started_at", "finished_at"
APPLIED = re.compile(r" ?\[[X-]\] +(?:(?P<app>\w+)\.)?(?P<name>\w+)")


class Command(mistakes.Plain, showmigrations.Command):
    def show_list(self, connection: Any, app_names: Any = None) -> None:
        self._show(super().show_list, connection, app_names)

    def show_plan(self, connection: Any, app_names: Any = None) -> None:
        self._show(super().show_plan, connection, app_names)

    def _show(self, show: Callable[..., None], connection: Any, app_names: Any) -> None:
        """Catch the lines that Django would print, and print them with what else is known, in columns."""
        mistakes.refuse_unknown_apps(app_names)
        stdout, lines = self.stdout, list[tuple[Any, ...]]()
        vars(self)["stdout"] = SimpleNamespace(write=lambda *line: lines.append(line))
        try:
            show(connection, app_names)
        finally:
            self.stdout = stdout
        loader = MigrationLoader(connection, ignore_no_migrations=True)
        steps = history.applied_by(connection.alias, loader, *COLUMNS)
        shown = [loader.graph.nodes.get(key) for key in _keys(text for text, *_ in lines)]
        edited = [each for each in shown if each in steps and history.is_edited(each, steps[each])]
        known = {
            each: [*_cells(steps[each]), "edited since" if each in edited else ""] for each in shown if each in steps
        }
        rows = [(text, known.get(each, []), style) for each, (text, *style) in zip(shown, lines, strict=True)]
        indent = max((len(text) for text, cells, _ in rows if cells), default=0)
        widths = [max(map(len, column)) for column in zip(*known.values(), strict=True)]
        for text, cells, style in rows:
            if cells:
                text = "  ".join(map(str.ljust, [text, *cells], [indent + 1, *widths])).rstrip()
            self.stdout.write(text, *style)
        if edited:
            self.stdout.write("\n" + history.warning(edited), self.style.WARNING)


def _keys(texts: Iterable[str]) -> Iterator[Key]:
    """Yield which migration each line shows as applied; none with an empty name."""
    app = ""
    for text in texts:
        if text.isidentifier():
            app = text
        match = APPLIED.match(text)
        yield (match["app"] or app, match["name"]) if match else ("", "")


def _cells(step: Any) -> list[str]:
    seconds = (step.finished_at - step.started_at).total_seconds()
    took = f"{'faked':>9}" if step.faked else f"{seconds:7.2f} s"
    when = f"{step.started_at:%Y-%m-%d %H:%M %Z}".rstrip()
    return [f"run {step.run}", when, took, "" if step.faked else f"blocked {step.longest_blocked:.2f} s"]
