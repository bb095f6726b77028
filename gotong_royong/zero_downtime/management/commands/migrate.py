"""Django's ``migrate`` with the engine's executor: one run at a time, under the lock budget, recorded."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from django.core.management import CommandError
from django.core.management.commands import migrate
from django.db import connections

from ...apps import why_not_guarded
from ...authoring.autodetector import extending
from ...conf import conf
from ...exceptions import BackupFailed, ImpossibleStage
from ...running import diagnosis, recall, reports, signals
from ...running.executor import Executor
from ...running.guard import guarded
from ...running.ledger import only_runner
from ...stages import Stage
from .. import chain
from ..consent import Asking, Consent


class Innermost(migrate.Command):
    """Django's command within the run's lock, which other apps' commands do not hold while they wait."""

    within: Callable[[], AbstractContextManager[None]]

    def handle(self, *args: Any, **options: Any) -> None:
        with self.within():
            super().handle(*args, **options)


class Command(chain.Chained, migrate.Command):
    innermost = (Innermost,)
    goes_on_unread = True
    report: reports.Reporter
    within: Callable[[], AbstractContextManager[None]]
    executor: Asking | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.autodetector = extending(type(self).autodetector)  # type: ignore[misc, arg-type]

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        with self.taking(parser):
            self.add_ours(parser)

    def add_ours(self, parser: Any) -> None:
        stages = parser.add_mutually_exclusive_group()
        stages.add_argument(
            "--pre-deploy",
            action="store_const",
            const=Stage.PRE_DEPLOY,
            dest="stage",
            help="Apply only what the new code needs before it ships.",
        )
        stages.add_argument(
            "--post-deploy",
            action="store_const",
            const=Stage.POST_DEPLOY,
            dest="stage",
            help="Apply the rest, once the new code runs everywhere.",
        )
        parser.add_argument(
            "--auto-rollback",
            action=argparse.BooleanOptionalAction,
            help="Undo what this run applied if a step fails; the default is the setting ZERO_DOWNTIME_AUTO_ROLLBACK.",
        )
        parser.add_argument(
            "--backup", metavar="DIR", help="Dump the database into a file in this folder before the first step."
        )
        parser.add_argument(
            "--format", choices=["text", "json"], default="text", help="The format of the plan or the run."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        diagnosis.refuse_unknown_apps(filter(None, [options["app_label"]]))
        if options["plan"]:
            self.show_plan(*args, **options)
            return
        connection, kind = connections[options["database"]], options["format"]
        unguarded = why_not_guarded(connection)
        if unguarded and options["backup"]:
            raise BackupFailed(unguarded, "Leave out --backup.")
        self.guarded = not unguarded and not options["check_unapplied"]
        if unguarded and self.verbosity and kind != "json":
            self.stdout.write(f"This run is neither guarded nor recorded: {unguarded}.")
        with reports.reporter(self, kind=kind, verbosity=self.verbosity, no_color=options["no_color"]) as self.report:
            self.within = partial(self.at_work, options)
            super().handle(*args, **{**options, "verbosity": 0 if kind == "json" else self.verbosity})
            for text in dict.fromkeys(left.text for left in self.executor.left) if self.executor else ():
                self.report("note", text=text)
        if self.executor:
            self.refuse_to_hold_back(self.executor.held_back)

    @contextmanager
    def at_work(self, options: dict[str, Any]) -> Iterator[None]:
        """Let Django's command use the engine's executor, as the only runner."""
        connection, kind = connections[options["database"]], options["format"]
        with ExitStack() as stack:
            keywords: dict[str, Any] = {"stage": options["stage"]}
            if self.guarded:
                stack.enter_context(sigterm_like_ctrl_c())
                wanted = options["auto_rollback"]
                keywords |= {
                    "alias": stack.enter_context(only_runner(connection, self.report)),
                    "auto_rollback": conf.AUTO_ROLLBACK if wanted is None else wanted,
                    "backup_folder": options["backup"],
                    "report": self.report,
                }

            def executor(*arguments: Any) -> Executor:
                self.executor = Asking(*arguments, **keywords)
                if self.guarded:
                    agreed = not options["interactive"]
                    self.executor.consent = None if options["fake"] else self.consent(agreed, kind)
                    recall.recall(self.executor)
                return self.executor

            stack.enter_context(in_place_of_djangos(executor))
            yield

    def consent(self, agreed: bool, kind: str) -> Consent:
        """Return the consent to the losses of a way back: to all or to none."""

        def say(text: str) -> None:
            if kind == "json":
                self.report("note", text=text)
            else:
                self.stdout.write(text)

        return Consent(say, data=agreed, all=None, option="--no-input")

    def migration_progress_callback(self, action: str, migration: Any = None, fake: bool = False) -> None:
        """Call the other commands' callback as Django does; the reporter prints recorded steps."""
        shown = self.verbosity
        self.verbosity = 0 if migration and self.executor and self.executor.run else shown
        try:
            super().migration_progress_callback(action, migration, fake)
        finally:
            self.verbosity = shown

    def refuse_to_hold_back(self, held_back: list[str]) -> None:
        if held_back:
            raise ImpossibleStage(
                "Not applied, because it must run before the deploy but needs a step that must run after one:\n"
                + "\n".join(f"  {chain}" for chain in held_back)
                + "\nRun migrate --post-deploy once the code of that step runs everywhere, then --pre-deploy again."
            )

    def sync_apps(self, connection: Any, app_labels: Any) -> None:
        """Create the tables of apps without migrations as Django does, guarded like a step."""
        if not self.guarded:
            super().sync_apps(connection, app_labels)
            return
        with guarded(connection, self.report) as guard:
            guard.watchdog.new_step()
            guard.trying(lambda attempt: super(Command, self).sync_apps(connection, app_labels))

    def show_plan(self, *args: Any, **options: Any) -> None:
        """Let Django find and check the plan, and print it; lock and write nothing."""
        if options["prune"]:
            raise CommandError("--plan changes nothing. Run migrate --prune without --plan.")
        from ...running.plan import Planner, look_ahead, only_looking  # a deploy does not need it

        planners: list[Planner] = []

        def planner(*arguments: Any, **keywords: Any) -> Planner:
            planners.append(Planner(*arguments, **keywords, stage=options["stage"]))
            return planners[-1]

        @contextmanager
        def looking() -> Iterator[None]:
            with only_looking(connections[options["database"]]), in_place_of_djangos(planner):
                yield

        self.within = looking
        with suppress(SystemExit):
            super().handle(*args, **{**options, "plan": False, "check_unapplied": True})
        plan = planners[0].plan
        steps = look_ahead(planners[0], plan, fake=options["fake"], fake_initial=options["fake_initial"])
        if options["format"] == "json":
            self.stdout.write(json.dumps([step.as_json() for step in steps], indent=2))
        else:
            self.stdout.write("Planned operations:", self.style.MIGRATE_LABEL)
            for step, (migration, backwards) in zip(steps, plan, strict=True):
                reports.print_step(
                    self,
                    self.verbosity,
                    step,
                    [self.describe_operation(one, backwards) for one in migration.operations],
                )
            if not steps:
                self.stdout.write("  No planned migration operations.")
            for key, half in recall.halves(planners[0]).items():
                if key in planners[0].loader.applied_migrations:
                    self.stdout.write(f"{'.'.join(key)} is {half}.", self.style.WARNING)
        self.refuse_to_hold_back(planners[0].held_back)
        if plan and options["check_unapplied"]:
            sys.exit(1)


def in_place_of_djangos(executor: Any) -> AbstractContextManager[None]:
    """Let Django's command build our executor and send our signals."""
    return chain.in_place(
        migrate,
        MigrationExecutor=executor,
        emit_pre_migrate_signal=partial(signals.send, "pre_migrate"),
        emit_post_migrate_signal=partial(signals.send, "post_migrate"),
    )


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: cancel the statement, close the ledger, release the lock.

    Only the main thread can handle signals, so in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
