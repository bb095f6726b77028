"""Has somebody agreed to what a way back destroys?

A command names the losses first, asks, and counts them again after the answer. Without a terminal, the options of the
command must agree.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..exceptions import NotUndoable
from ..running import recall, rollback
from ..running.executor import Executor
from ..running.rollback import Applied
from ..stages import Plan, key_of

if TYPE_CHECKING:
    from ..running.losses import Reader


@dataclass
class Consent:
    """What the options of a command agree to.

    Args:
        say: prints a line.
        data: whether losses are agreed to.
        all: whether an empty database is agreed to; None treats that as any other loss.
        edited: whether to go back by the current text of an edited file.
        option: the option that agrees to losses.
    """

    say: Callable[[str], object]
    data: bool
    all: bool | None
    edited: bool = False
    option: str = "--yes"

    def show(
        self, executor: Executor, done: list[Applied], chosen: list[Applied], *, only_losses: bool = False
    ) -> "tuple[Plan, Reader]":
        """Print what is taken back and what is lost with it; return the plan and the losses.

        Args:
            done: all applied migrations.
            chosen: those to take back.
            only_losses: whether to print nothing if nothing is lost.

        Raises:
            NotUndoable: names what cannot be taken back.
        """
        rollback.refuse_unknown(executor, done, chosen, accept_edited=self.edited)
        executor.faked |= {one.key for one in chosen if one.is_faked}
        plan = rollback.plan_of(executor, {one.key for one in chosen}, executor.faked)
        found = self._losses(executor, plan)
        half = {one.key: one.runs[-1] for one in chosen if one.is_half}
        if only_losses and not found.losses:
            return plan, found
        self.say("To be taken back, in this order:")
        for migration, _ in plan:
            run = half.get(key_of(migration))
            what = " (only its record: it was faked)" if key_of(migration) in executor.faked else ""
            self.say(f"  {migration}{f' (what run {run} did before it failed)' if run else what}")
            for loss in found.losses:
                if loss.migration == migration:
                    self.say(f"    {loss}")
        return plan, found

    def agree(self, executor: Executor, plan: Plan, found: "Reader", *, is_all: bool) -> None:
        """Ask for agreement to the losses; count them again after the answer, which may take long.

        Args:
            found: the losses that ``show`` printed.
            is_all: whether all applied migrations go.

        Raises:
            NotUndoable: without agreement, or if the way back must fail.
        """
        while True:
            if any(loss.must_fail for loss in found.losses):
                raise NotUndoable("The way back must fail, as is said above. Nothing was changed.")
            if self.all is not None and (is_all or self._empties(executor, found)):
                if not (self.data and self.all):
                    name = str(executor.connection.settings_dict["NAME"])
                    said = f"That is all that there is: nothing is left of the database {name}."
                    self._ask(said, f"{said} Type its name", name, "--yes --all if that is meant")
            elif found.losses and not self.data:
                lost, question = "Data would be lost, as listed above.", "These data will be lost. Type yes"
                self._ask(lost, question, "yes", f"{self.option} to lose them")
            again = found if self.data or not found.losses else self._losses(executor, plan)
            if again.losses == found.losses:
                executor.agreed = again.goes_along
                return
            found = again
            self.say("That has changed meanwhile. By now it is:")
            for loss in found.losses:
                self.say(f"  {loss.migration} {loss}")

    def _losses(self, executor: Executor, plan: Plan) -> "Reader":
        from ..running import losses  # a way forwards does not need it

        return losses.way_back(executor, [step for step in plan if key_of(step[0]) not in executor.faked])

    def _empties(self, executor: Executor, found: "Reader") -> bool:
        from ..running import losses

        return losses.empties(executor, found)

    def _ask(self, said: str, question: str, answer: str, option: str) -> None:
        if not sys.stdin.isatty():
            raise NotUndoable(f"{said} Nothing was changed. Add {option}.")
        if input(f"{question} to go on: ").strip() != answer:
            raise NotUndoable("Nothing was changed.")


class Asking(Executor):
    """The executor of ``migrate``, whose plan goes back only with agreement to the losses.

    ``--no-input`` agrees, as with Django's other commands. A faked migration destroys nothing. Losses in the
    ledger's own tables are not named.
    """

    consent: Consent | None = None

    def migration_plan(self, targets: Any, clean_start: bool = False) -> Plan:
        plan = super().migration_plan(targets, clean_start)
        back = {key_of(migration) for migration, backwards in plan if backwards}
        if self.alias and not clean_start:
            recall.refuse_half_taken_back(self, plan)
        if self.consent and back and not clean_start:
            done = rollback.applied(self)
            if chosen := [one for one in done if one.key in back]:
                steps, found = self.consent.show(self, done, chosen, only_losses=True)
                self.consent.agree(self, steps, found, is_all=False)
        return plan
