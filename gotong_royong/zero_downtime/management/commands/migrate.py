"""Django's ``migrate``, carried out by our executor: one run at a time, under the lock budget, recorded."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from gotong_royong.zero_downtime.autodetector import MigrationAutodetector
from gotong_royong.zero_downtime.exceptions import ImpossibleStage
from gotong_royong.zero_downtime.executor import Executor, is_guarded, only_runner
from gotong_royong.zero_downtime.stages import Stage


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

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity = options["verbosity"]
        connection = connections[options["database"]]
        guarded = is_guarded(connection) and not options["plan"] and not options["check_unapplied"]
        executors: list[Executor] = []

        def executor(*arguments: Any, **keywords: Any) -> Executor:
            executors.append(Executor(*arguments, **keywords, stage=options["stage"], report=self.say))
            return executors[-1]

        if not guarded:
            with in_place_of_djangos(executor):
                super().handle(*args, **options)
        else:
            with (
                sigterm_like_ctrl_c(),
                only_runner(connection, self.say) as ledger,
                in_place_of_djangos(partial(executor, ledger=ledger)),
            ):
                super().handle(*args, **options)
        held_back = [chain for executor in executors for chain in executor.held_back]
        if held_back:
            raise ImpossibleStage(
                "Not applied, because it must run before the deploy but needs a step that must run after one:\n"
                + "\n".join(f"  {chain}" for chain in held_back)
                + "\nRun migrate --post-deploy once the code of that step runs everywhere, then --pre-deploy again."
            )

    def say(self, line: str) -> None:
        if self.verbosity:
            self.stdout.write(line)


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
