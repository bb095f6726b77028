"""Take back migrations: the last run, one run, the last steps, or all after a timestamp."""

from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from ...conf import conf
from ...exceptions import NotUndoable, counted
from ...postgres import locks
from ...running import recall, reports, rollback
from ...running.executor import Executor
from ...running.ledger import only_runner
from ...running.plan import only_looking
from ...running.rollback import Applied
from ...running.signals import between_signals
from ..base import ZeroDowntimeCommand
from ..consent import Consent
from . import migrate


class Command(ZeroDowntimeCommand):
    help = "Takes back the migrations of the last run, or those that you name, newest first."
    goes_on_unread = True
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--steps", type=int, metavar="N", help="The last N migrations of any run.")
        which.add_argument(
            "--to", metavar="TIMESTAMP", help="Every migration later than this one, such as 20260210120000."
        )
        which.add_argument("--run", type=int, metavar="ID", help="The migrations that this run applied.")
        parser.add_argument("--plan", action="store_true", help="Only show what would be done and lost.")
        parser.add_argument("--yes", action="store_true", help="Lose the listed data without being asked.")
        parser.add_argument("--all", action="store_true", help="With --yes: even if nothing is left of the database.")
        parser.add_argument(
            "--accept-edited",
            action="store_true",
            help="Use the current text of a file that was edited after it was applied.",
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise NotUndoable(
                f"{connection.alias} is not a PostgreSQL database, so no run on it was recorded. Name one with "
                "--database."
            )
        with only_looking(connection):
            executor = Executor(connection)
            done = rollback.applied(executor)
            chosen = rollback.with_halves(executor, done, self.choose(executor, done, options))
        if not chosen:
            self.stdout.write(f"Nothing to take back. {'Nothing later' if done else 'No migration'} is applied.")
            return
        consent = Consent(self.say, data=options["yes"], all=options["all"], edited=options["accept_edited"])
        if options["plan"]:
            with locks.session_settings(connection, lock_timeout=locks.milliseconds(conf.LOCK_TIMEOUT)):
                consent.show(executor, done, chosen)
                if run := recall.at_work(executor):
                    self.say(f"{run.described}, is at work: what it does may change this.")
            return
        with (
            migrate.sigterm_like_ctrl_c(),
            reports.reporter(self, verbosity=self.verbosity, no_color=options["no_color"]) as report,
            only_runner(connection, report) as alias,
        ):
            executor = Executor(connection, alias=alias, command="rollback", report=report)
            recall.recall(executor)
            if (done_now := rollback.applied(executor)) != done:
                raise NotUndoable(
                    f"While this waited for its turn, {rollback.difference(alias, done, done_now)}. "
                    "Nothing more was changed. To see what is left to take back: rollback --plan."
                )
            plan, found = consent.show(executor, done, chosen)
            is_all = len(chosen) == len(done) and not all(one.is_faked for one in chosen)
            consent.agree(executor, plan, found, is_all=is_all)
            how = {"verbosity": self.verbosity, "interactive": not options["yes"], "stdout": self.stdout}

            def take_back() -> None:
                executor.migrate([], plan=plan)
                self.stdout.write(self.style.SUCCESS(f"Took back {counted(len(plan), 'migration')} in {executor.run}."))
                for text in dict.fromkeys(left.text for left in executor.left):
                    self.stdout.write(f"  {text}")

            between_signals(executor, plan, take_back, **how)

    def say(self, text: str) -> None:
        """Print a line of the plan in the color of its kind."""
        style = self.style.WARNING if text.startswith("    ") else str if text[0] == " " else self.style.MIGRATE_HEADING
        self.stdout.write(style(text))

    def choose(self, executor: Executor, done: list[Applied], options: dict[str, Any]) -> list[Applied]:
        for option in ("steps", "run"):
            if not isinstance(options[option], int | None):
                raise NotUndoable(f"--{option} {options[option]!r} is not a number. Nothing was changed.")
        steps = options["steps"]
        if not done and options["to"] is None and options["run"] is None and (steps is None or steps > 0):
            return []
        if steps is not None:
            return rollback.last_steps(done, steps)
        if options["to"] is not None:
            return rollback.later_than(executor, done, options["to"])
        return rollback.batch(executor, done, options["run"])
