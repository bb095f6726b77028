"""Take back what was migrated: the last batch, the last steps, one run, or all that came after a timestamp."""

import sys
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from gotong_royong.zero_downtime import losses, mistakes, reports, rollback
from gotong_royong.zero_downtime.exceptions import NotUndoable, counted
from gotong_royong.zero_downtime.executor import Executor
from gotong_royong.zero_downtime.ledger import only_runner
from gotong_royong.zero_downtime.management.commands import migrate
from gotong_royong.zero_downtime.plan import only_looking
from gotong_royong.zero_downtime.rollback import Applied
from gotong_royong.zero_downtime.signals import between_signals
from gotong_royong.zero_downtime.stages import Plan, key_of


class Command(mistakes.Plain):
    help = "Takes back the migrations of the last run, or as many as you say, newest first."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--steps", type=int, metavar="N", help="The last N migrations, whichever run applied them.")
        which.add_argument("--to", metavar="TIMESTAMP", help="Everything later than this one, such as 20260210120000.")
        which.add_argument("--run", type=int, metavar="ID", help="What this run applied.")
        parser.add_argument("--plan", action="store_true", help="Only show what would be done and lost.")
        parser.add_argument("--yes", action="store_true", help="Lose the data that go with it without being asked.")
        parser.add_argument("--all", action="store_true", help="With --yes: even if nothing is left of the database.")
        parser.add_argument(
            "--accept-edited",
            action="store_true",
            help="Go back by what a file says now, though it was edited after it was applied.",
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise NotUndoable(f"{connection.alias} is not a PostgreSQL database, so no run on it was recorded.")
        with only_looking(connection):
            executor = Executor(connection)
            done = rollback.applied(executor)
            chosen = self.choose(executor, done, options)
        if not chosen:
            self.stdout.write(f"Nothing to take back. {'Nothing later' if done else 'No migration'} is applied.")
            return
        if options["plan"]:
            self.show(executor, chosen, options)
            return
        with (
            migrate.sigterm_like_ctrl_c(),
            reports.reporter(self, verbosity=self.verbosity, no_color=options["no_color"]) as report,
            only_runner(connection, report) as alias,
        ):
            executor = Executor(connection, alias=alias, command="rollback", report=report)
            executor.recall()
            if (done_now := rollback.applied(executor)) != done:
                raise NotUndoable(
                    f"While this waited for its turn, {rollback.difference(alias, done, done_now)}. "
                    "Nothing more was changed. Look what there is to take back now: rollback --plan."
                )
            plan, found = self.show(executor, chosen, options)
            self.agree(
                executor,
                plan,
                found,
                options,
                is_all=len(chosen) == len(done) and not all(one.is_faked for one in chosen),
            )
            how = {"verbosity": self.verbosity, "interactive": not options["yes"], "stdout": self.stdout}
            between_signals(executor, plan, lambda: executor.migrate([], plan=plan), **how)
            self.stdout.write(self.style.SUCCESS(f"Took back {counted(len(plan), 'migration')} in {executor.run}."))
            for text in dict.fromkeys(left.text for left in executor.left):
                self.stdout.write(f"  {text}")

    def choose(self, executor: Executor, done: list[Applied], options: dict[str, Any]) -> list[Applied]:
        for option in ("steps", "run"):
            if not isinstance(options[option], int | None):
                raise NotUndoable(f"--{option} {options[option]!r} is not a number. Nothing was changed.")
        if not done:
            return []
        if options["steps"] is not None:
            return rollback.last_steps(done, options["steps"])
        if options["to"] is not None:
            return rollback.later_than(executor, done, options["to"])
        return rollback.batch(executor, done, options["run"])

    def show(self, executor: Executor, chosen: list[Applied], options: dict[str, Any]) -> tuple[Plan, losses.Reader]:
        rollback.refuse_unknown(executor, chosen, accept_edited=options["accept_edited"])
        executor.faked |= {one.key for one in chosen if one.is_faked}
        plan = rollback.plan_of(executor, {one.key for one in chosen}, executor.faked)
        found = self.look(executor, plan)
        half = {one.key: one.runs[-1] for one in chosen if one.is_half}
        self.stdout.write(self.style.MIGRATE_HEADING("To be taken back, in this order:"))
        for migration, _ in plan:
            run = half.get(key_of(migration))
            what = " (only its record: it was faked)" if key_of(migration) in executor.faked else ""
            self.stdout.write(f"  {migration}{f' (what run {run} did before it failed)' if run else what}")
            for loss in found.losses:
                if loss.migration == migration:
                    self.stdout.write(self.style.WARNING(f"    {loss}"))
        return plan, found

    def look(self, executor: Executor, plan: Plan) -> losses.Reader:
        return losses.way_back(executor, [step for step in plan if key_of(step[0]) not in executor.faked])

    def agree(
        self, executor: Executor, plan: Plan, found: losses.Reader, options: dict[str, Any], *, is_all: bool
    ) -> None:
        """Make sure that somebody has agreed to what goes; look again after the answer, for that may take long.

        Raises:
            NotUndoable: if nobody has, or the way back must fail.
        """
        while True:
            if any(loss.must_fail for loss in found.losses):
                raise NotUndoable("The way back must fail, as is said above. Nothing was changed.")
            if is_all or losses.empties(executor, found):
                if not (options["yes"] and options["all"]):
                    self.ask_for_all(executor.connection.settings_dict["NAME"])
            elif found.losses and not options["yes"]:
                self.ask()
            if options["yes"] or not found.losses:
                return
            again = self.look(executor, plan)
            if again.losses == found.losses:
                return
            found = again
            self.stdout.write("That has changed meanwhile. By now it is:")
            for loss in found.losses:
                self.stdout.write(self.style.WARNING(f"  {loss.migration} {loss}"))

    def ask(self) -> None:
        if not sys.stdin.isatty():
            raise NotUndoable("Data would be lost, as listed above. Nothing was changed. Add --yes to lose them.")
        if input("These data will be lost. Type yes to go on: ").strip().lower() != "yes":
            raise NotUndoable("Nothing was changed.")

    def ask_for_all(self, database: str) -> None:
        said = f"That is all that there is: nothing is left of the database {database}."
        if not sys.stdin.isatty():
            raise NotUndoable(f"{said} Nothing was changed. Add --yes --all if that is meant.")
        if input(f"{said} Type its name to go on: ").strip() != database:
            raise NotUndoable("Nothing was changed.")
