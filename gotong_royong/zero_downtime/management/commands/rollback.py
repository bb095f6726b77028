"""Take back what was migrated: the last batch, the last steps, one run, or all that came after a timestamp."""

import sys
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from gotong_royong.zero_downtime import mistakes, reports, rollback
from gotong_royong.zero_downtime.exceptions import NotUndoable, counted
from gotong_royong.zero_downtime.executor import Executor
from gotong_royong.zero_downtime.ledger import only_runner
from gotong_royong.zero_downtime.management.commands import migrate
from gotong_royong.zero_downtime.signals import between_signals


class Command(mistakes.Plain):
    help = "Takes back the migrations of the last run, or as many as you say, newest first."
    requires_system_checks: list[str] = []
    migration_progress_callback: Any = migrate.Command.migration_progress_callback

    def add_arguments(self, parser: Any) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--steps", type=int, metavar="N", help="The last N migrations, whichever run applied them.")
        which.add_argument("--to", metavar="TIMESTAMP", help="Everything later than this one, such as 20260210120000.")
        which.add_argument("--run", type=int, metavar="ID", help="What this run applied.")
        parser.add_argument("--plan", action="store_true", help="Only show what would be done and lost.")
        parser.add_argument("--yes", action="store_true", help="Lose the data that go with it without being asked.")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise NotUndoable(f"{connection.alias} is not a PostgreSQL database, so no run on it was recorded.")
        with (
            migrate.sigterm_like_ctrl_c(),
            reports.reporter(self, verbosity=self.verbosity, no_color=options["no_color"]) as report,
            only_runner(connection, report) as alias,
        ):
            executor = Executor(
                connection, self.migration_progress_callback, alias=alias, command="rollback", report=report
            )
            if not options["plan"]:
                executor.recall()
            if options["steps"] is not None:
                chosen = rollback.last_steps(executor, options["steps"])
            elif options["to"]:
                chosen = rollback.later_than(executor, options["to"])
            else:
                chosen = rollback.batch(executor, alias, options["run"])
            plan = rollback.plan_of(executor, chosen)
            if not plan:
                self.stdout.write("Nothing to take back.")
                return
            losses = list(rollback.losses(executor, plan))
            self.stdout.write(self.style.MIGRATE_HEADING("To be taken back, in this order:"))
            for migration, _ in plan:
                self.stdout.write(f"  {migration}")
                for loss in losses:
                    if loss.migration == migration:
                        self.stdout.write(self.style.WARNING(f"    loses {loss}"))
            if options["plan"]:
                return
            if losses and not options["yes"]:
                self.ask(len(losses))
            how = {"verbosity": self.verbosity, "interactive": not options["yes"], "stdout": self.stdout}
            between_signals(executor, plan, lambda: executor.migrate([], plan=plan), **how)
            self.stdout.write(self.style.SUCCESS(f"Took back {counted(len(plan), 'migration')} in {executor.run}."))

    def ask(self, count: int) -> None:
        if not sys.stdin.isatty():
            raise NotUndoable("Data would be lost, as listed above. Nothing was changed. Add --yes to lose them.")
        if input("These data will be lost. Type yes to go on: ").strip().lower() != "yes":
            raise NotUndoable("Nothing was changed.")
