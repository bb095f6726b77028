"""How does one step of a run go: its tries, the sessions that waited for it, and its end?"""

import time
import traceback
from typing import Any

from django.db.migrations import Migration

from ..exceptions import WAYS_OUT, HalfCommitted, StepFailed, ZeroDowntimeError, for_the_ledger, in_full, summary
from ..models import Status, Step
from ..postgres import locks
from ..postgres.journal import Journal, Past
from ..stages import Stage, key_of
from . import history, ledger
from .guard import Guard
from .loader import file_of, groups
from .undo import Left, is_half_done


class Progress:
    """One migration of a run in one direction; reports it and writes it into the ledger.

    Args:
        past: what earlier runs did of it.
        number, of: the number of the step, and how many there are.
        faked: whether it is only recorded.
    """

    def __init__(
        self,
        steps: ledger.Steps,
        guard: Guard,
        migration: Migration,
        direction: Step.Direction,
        past: Past,
        *,
        stage: Stage,
        faked: bool,
        number: int,
        of: int,
    ) -> None:
        self.steps, self.guard, self.migration, self.direction, self.faked = steps, guard, migration, direction, faked
        self.is_up = direction == Step.Direction.UP
        self.again = "migrate again" if self.is_up else "roll back again"
        self.tries = 0
        self.used = False
        """Whether a try has used the state of the models."""
        self.left: list[Left] = []
        """What its way down leaves."""
        self.careful = not migration.atomic
        """Whether to look before each statement whether it is done already; a transaction leaves nothing half done."""
        self._who: dict[str, Any] = {
            "app": migration.app_label,
            "name": migration.name,
            "direction": direction.value,
            "number": number,
            "of": of,
        }
        guard.report("step_started", **self._who, stage=stage.value, faked=faked)
        self.journal = Journal(steps.note, steps.run.pk, at_once=not migration.atomic, past=past)
        self.journal.is_up = self.is_up
        steps.begin(migration, direction, faked=faked)
        self._blocked, self._started = guard.watchdog.new_step(), time.monotonic()

    @property
    def where(self) -> str:
        """`` in operation 2 of 3``, or nothing."""
        number = self.journal.number
        return f" in operation {number} of {len(groups(self.migration))}" if self.is_up and number else ""

    def end(self, status: Status, error: str = "") -> None:
        """Report and record its end."""
        facts = {"tries": self.tries, **self._blocked.facts}
        self.steps.end(status, error, facts)
        seconds = time.monotonic() - self._started
        self.guard.report("step_finished", **self._who, status=status.value, seconds=seconds, error=error, **facts)

    def end_unless_committed(self, status: Status, error: str) -> bool:
        """Record its end after an interruption: django_migrations tells whether the commit had succeeded."""
        ledger.awake(self.steps.alias)
        is_done = history.is_done(self.steps.alias, key_of(self.migration), self.direction)
        self.end(Status.SUCCEEDED if is_done else status, "" if is_done else error)
        return is_done

    @property
    def what_is_left(self) -> str:
        """Say what stays of it after its failure."""
        is_half = is_half_done(self.migration, self.journal.lasting)
        if self.migration.atomic and not is_half:
            return "Nothing of it is left."
        if self.migration.atomic:
            return "What an earlier run did of it, before it was atomic, stays. Nothing else of it is left."
        if not is_half:
            return "It is not atomic, but it had done nothing yet."
        return f"It is not atomic, so what it did before that stays; {self.again} goes on from there."

    def explained(self, error: Exception, left: str) -> ZeroDowntimeError:
        """Return the error to raise: what failed where, what is ``left`` of it, and what to do."""
        migration, where = self.migration, self.where
        if isinstance(error, ZeroDowntimeError):
            left = "" if isinstance(error, HalfCommitted) else left
            reason = str(error).replace("migrate again", self.again)
            said = error.saying(f"{migration} was stopped{where}. {reason}\n{left}".rstrip())
            said.kept = error.kept or summary(said)
            return said
        if locks.is_lost(error):
            left, advice = "", f"The connection to the database was lost. Once it is back, {self.again}."
        elif locks.sqlstate(error) == locks.NOT_ALLOWED:
            advice = f"{self.again.capitalize()} as the role that owns it, or GRANT this role the missing right."
        elif self.is_up and locks.sqlstate(error) in locks.THERE_ALREADY:
            advice = WAYS_OUT
        else:
            advice = f"Correct it and {self.again}; --traceback shows where the error came from."
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file_of(migration)]
        place = f"\n  {lines[-1].filename}, line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
        failure = StepFailed(
            f"{migration} failed{where}: {in_full(error)}{place}\n{' '.join(filter(None, [left, advice]))}"
        )
        failure.kept = f"{migration} failed{where}: {for_the_ledger(error)}{place}"
        return failure


def is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the first cause: Django, interrupted in a commit, fails to reset the connection."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or is_interruption(error.__context__))
