"""Django's ``migrate``, carried out by our executor: one run at a time, under the lock budget, recorded."""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from gotong_royong.zero_downtime.autodetector import MigrationAutodetector
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import ImpossibleStage
from gotong_royong.zero_downtime.executor import Executor
from gotong_royong.zero_downtime.guard import Guard
from gotong_royong.zero_downtime.ledger import is_guarded, only_runner
from gotong_royong.zero_downtime.stages import Stage

LINES = {
    "waiting": "Waiting for {whom}.",
    "note": "{text}",
    "retry": "  Try {attempt} got no lock: {whom}. Next in {pause:.1f} s.",
    "step_started": "  {app}.{name} {direction} …",
    "step_finished": "  {app}.{name} {status} in {seconds:.2f} s",
}


class Command(migrate.Command):
    autodetector = MigrationAutodetector

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        stages = parser.add_mutually_exclusive_group()
        stages.add_argument(
            "--pre-deploy",
            action="store_const",
            const=Stage.PRE_DEPLOY,
            dest="stage",
            help="Apply only what must be there before the new code ships.",
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

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        connection = connections[options["database"]]
        self.guarded = is_guarded(connection) and not options["plan"] and not options["check_unapplied"]
        auto_rollback = conf.AUTO_ROLLBACK if options["auto_rollback"] is None else options["auto_rollback"]
        executors: list[Executor] = []

        def executor(*arguments: Any, **keywords: Any) -> Executor:
            executors.append(
                Executor(
                    *arguments, **keywords, stage=options["stage"], auto_rollback=auto_rollback, report=self.report
                )
            )
            return executors[-1]

        if not self.guarded:
            with in_place_of_djangos(executor):
                super().handle(*args, **options)
        else:
            with (
                sigterm_like_ctrl_c(),
                only_runner(connection, self.report) as alias,
                in_place_of_djangos(partial(executor, alias=alias)),
            ):
                super().handle(*args, **options)
        held_back = [chain for executor in executors for chain in executor.held_back]
        if held_back:
            raise ImpossibleStage(
                "Not applied, because it must run before the deploy but needs a step that must run after one:\n"
                + "\n".join(f"  {chain}" for chain in held_back)
                + "\nRun migrate --post-deploy once the code of that step runs everywhere, then --pre-deploy again."
            )

    def sync_apps(self, connection: Any, app_labels: Any) -> None:
        """Make the tables of apps without migrations as Django does, under the same guard as a step."""
        if not self.guarded:
            super().sync_apps(connection, app_labels)
            return
        with Guard(connection, self.report) as guard:
            guard.watchdog.new_step()
            guard.trying(lambda attempt: super(Command, self).sync_apps(connection, app_labels))

    def report(self, event: str, **facts: Any) -> None:
        if self.verbosity and event in LINES:
            self.stdout.write(LINES[event].format(**facts))


@contextmanager
def in_place_of_djangos(executor: Any) -> Iterator[None]:
    """Let Django's command build our executor: it takes the class from its module and offers no other way."""
    module = vars(migrate)
    before = module["MigrationExecutor"]
    module["MigrationExecutor"] = executor
    try:
        yield
    finally:
        module["MigrationExecutor"] = before


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: the statement is canceled, the ledger closed, the lock let go."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
