"""Show and control backfills: data changes that go through large tables in the background."""

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from ...backfills import control, declarations, pool
from ...exceptions import BackfillFailed, BackfillRefused
from ...models import Backfill, whoami
from ...running import reports
from ..base import ZeroDowntimeCommand
from .migrate import sigterm_like_ctrl_c

Status = Backfill.Status
ACTIONS = {
    "list": "All backfills and their progress.",
    "show": "One backfill: its progress, its ranges and the rows set aside.",
    "run": "Work on it here. Workers elsewhere go on, too.",
    "pause": "Stop every worker after its current batch.",
    "resume": "Continue a paused one.",
    "cancel": "End it; changed rows stay changed.",
    "retry": (
        "Start an ended one again with the rows that are still to do. Without a where, one that failed or was "
        "canceled continues where it was, then retries the rows set aside; one that succeeded changes all rows again."
    ),
}


class Command(ZeroDowntimeCommand):
    help = "Shows and controls backfills: data changes that go through large tables in the background."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
        for name, text in ACTIONS.items():
            action = actions.add_parser(name, help=text, description=text)
            action.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
            if name != "list":
                action.add_argument("name", help="The backfill, such as accounts.populate_markov_user_ids.")
            if name == "run":
                action.add_argument(
                    "--workers", type=int, default=1, metavar="N", help="Number of workers (default 1)."
                )
                told = "Ignore all reasons to go slower; cancel autovacuum's ANALYZE of the table, if allowed."
                action.add_argument("--full-speed", action="store_true", help=told)

    def handle(self, *args: Any, action: str, database: str, **options: Any) -> None:
        if action == "list":
            for name in sorted({*declarations.all_declared(), *control.names(database)}):
                self.stdout.write(reports.backfill_line(*control.status(name, database)))
            return
        name = options["name"]
        if action == "show":
            row, progress = control.status(name, database)
            if not row.pk:
                declarations.declared(name)
            reports.print_backfill(self, row, progress)
        elif action == "run":
            self.run(name, database, options)
        else:
            row = control.known(name, database)
            control.apply(row, action, whoami())
            then = f" again: {control.who_takes_up(name)}" if row.status == Status.PENDING else ""
            self.stdout.write(f"{row} is {row.status}{then}.")

    def run(self, name: str, database: str, options: dict[str, Any]) -> None:
        if options["workers"] < 1:
            raise BackfillRefused("--workers must be 1 or more.")
        row = control.get_or_create(name, database)
        if row.status == Status.SUCCEEDED:
            knows = declarations.declared(name).where is not None
            does = "checks for new rows to do" if knows else "changes all rows again"
            self.stdout.write(f"{row} has succeeded already. backfill retry {row} {does}.")
            return
        if row.status not in {Status.PENDING, Status.RUNNING}:
            told = f"failed. {row.error}\n" if row.status == Status.FAILED else f"is {row.status}. "
            raise BackfillRefused(f"{row} {told}backfill {control.again(row)} {row} makes it pending.")
        with sigterm_like_ctrl_c(), reports.backfill_display(self, no_color=options["no_color"]) as show:
            row = pool.run(name, database, workers=options["workers"], at_full_speed=options["full_speed"], show=show)
        if row.status == Status.FAILED:
            raise BackfillFailed(f"{row} failed. {row.error}")
        if row.status != Status.SUCCEEDED:
            action = "run" if row.status in {Status.PENDING, Status.RUNNING} else control.again(row)
            raise BackfillRefused(
                f"{row} is {row.status}{control.by_whom(row)}, so it was left before its end. "
                f"backfill {action} {row} lets it go on."
            )
        self.stdout.write(reports.backfill_line(row, control.progress(row)))
