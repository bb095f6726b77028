"""How does a worker verify that no row is left to do?

One range of each sweep, number 0, is the verification range. Its worker reads the keys of the rows that are left. It
changes a few rows at once. If more are left, it cuts the table into the ranges of the sweep.

An order by blocks is read in slices through one snapshot, so that others get their turn. The order of keys has no
blocks to slice: one statement reads the table, and another thread or session can cancel it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from django.db import Error, transaction
from django.db.models.functions import Now

from ..conf import conf
from ..exceptions import BackfillFailed, counted
from ..models import Backfill, BackfillRange
from ..postgres import locks
from . import control, ranges, statements
from .batches import IN_QUEUE, LEFT, POLL, Batches
from .ranges import LeaseLost
from .statements import KEYS, STRIPES
from .throttle import ASK_EVERY

MOST_SWEEPS = 10  # after so many sweeps that each left LEFT rows or more, the backfill fails
ROUNDS = 10  # rounds without success before PATIENCE counts: a single round may take longer than PATIENCE

# https://www.postgresql.org/docs/current/transaction-iso.html#XACT-REPEATABLE-READ
ONE_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class Verification:
    """The work on one verification range. It locks no row while it reads (ACCESS SHARE on the table)."""

    def __init__(self, batches: Batches, part: BackfillRange) -> None:
        self.batches, self.part, self.row = batches, part, batches.row
        self.connection, self.model = batches.connection, batches.changes.work.model
        self._in_vain, self._chased, self._found = list[float](), list[float](), 0
        self._reads = False

    def run(self) -> None:
        """Change the rows that are left, or cut the table into ranges; return then, or when told to stop.

        Raises:
            BackfillFailed: if rows to do keep coming, or the last rows stay locked.
            LeaseLost: if another worker has the range now.
        """
        if self.part.sweep > MOST_SWEEPS:
            raise BackfillFailed(_keep_coming(f"{LEFT:,} and more in each of {MOST_SWEEPS} sweeps"))
        all_rows = self.batches.changes.work.declaration.where is None
        while not self.batches.stop():
            if not ranges.renew(self.connection, self.part):
                raise LeaseLost
            self.batches.held_up = ""
            keys = self.batches.changes.to_try_again() if all_rows else self.batches.unless_held_up(self.left)
            if keys is None:
                self._wait()
            elif self._is_over(keys, is_more=self.part.sweep == 1 if all_rows else len(keys) == LEFT):
                return

    def cancel(self) -> None:
        """End the statement that reads the table, if there is one. Another thread calls this."""
        if self._reads:
            with suppress(Error, psycopg.Error):
                self.connection.connection.cancel_safe()

    def left(self) -> list[Any] | None:
        """Return the keys of up to ``LEFT`` rows that are left; None if it stops or somebody waits for the table."""
        settings = {
            "lock_timeout": locks.milliseconds(IN_QUEUE),
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": locks.milliseconds(ranges.LEASE),
            "backend_flush_after": ranges.FLUSH_AFTER,
            **locks.no_transaction_timeout(self.connection),
        }
        with locks.session_settings(self.connection, **settings):
            self._reads = True
            try:
                if self.row.order == KEYS:
                    return list(self.batches.changes.work.to_do.values_list("pk", flat=True)[:LEFT])
                return self._in_slices()
            finally:
                self._reads = False

    def _wait(self) -> None:
        self.batches.rest(self.part, 0.0)
        if self.batches.held_up == locks.LOCK_NOT_AVAILABLE:
            self.batches.say("somebody keeps the table locked")
        time.sleep(POLL)

    def _is_over(self, keys: list[Any], *, is_more: bool) -> bool:
        """Change the rows with these keys; return whether that ends the range.

        Args:
            is_more: whether the table holds more rows to do. One batch with a changed row then shows that ``where``
                becomes false.
        """
        done = 0
        for rows, _ in self.batches.by_keys(self.part, keys):
            done += rows
            if is_more and done:
                break
        self.batches.changes.leave_alone_what_is_set_aside()
        if keys == [] or (is_more and done):
            if self.batches.finish(self.part, self._cut if is_more else self._end):
                return True
        elif done:
            self._chase(done)
            return False
        self._in_vain.append(time.monotonic())
        if _are_enough(self._in_vain):
            raise BackfillFailed(self.batches.why_held_up())
        time.sleep(POLL)
        return False

    def _chase(self, rows: int) -> None:
        """Count rows that were found after all were done: some code still writes rows to do."""
        self._in_vain.clear()
        self._chased.append(time.monotonic())
        if len(self._chased) > 1:
            self._found += rows
            self.batches.say(told := _keep_coming(f"{self._found:,} since it had done all"))
            if _are_enough(self._chased):
                raise BackfillFailed(told)

    def _in_slices(self) -> list[Any] | None:
        found = list[Any]()
        with self._one_snapshot(), self._is_running() as is_running:
            for table in ranges.parts_of(self.connection, self.model):
                for some in self.batches.reading(0, table.blocks):
                    self.batches.throttle.ask()
                    if self.batches.stop() or self.batches.throttle.is_waited_for or not is_running():
                        return None
                    found += statements.keys_of(self.batches.changes.work, some, table.name, lock=False)
                    if len(found) >= LEFT:
                        return found[:LEFT]
        return found

    @contextmanager
    def _one_snapshot(self) -> Iterator[None]:
        """Read in one snapshot, taken after the lock: an older snapshot sees a rewritten table as empty.

        https://www.postgresql.org/docs/current/mvcc-caveats.html
        """
        table = self.connection.ops.quote_name(self.model._meta.db_table)
        with transaction.atomic(using=self.batches.alias):
            with self.connection.cursor() as cursor:
                cursor.execute(ONE_SNAPSHOT)
                cursor.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            yield

    @contextmanager
    def _is_running(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that asks once a second, in a second session, whether the backfill still runs.

        The snapshot does not show a later pause or cancel.
        """
        other = self.connection.copy()
        asked, is_running = time.monotonic(), True

        def ask() -> bool:
            nonlocal asked, is_running
            if time.monotonic() - asked > ASK_EVERY:
                asked, is_running = time.monotonic(), ranges.is_running(other, self.row)
            return is_running

        try:
            yield ask
        finally:
            other.close()

    def _end(self, _: BackfillRange) -> None:
        """Record success; if rows are set aside, record failure."""
        if count := self.batches.changes.given_up():
            rows = counted(count, "row")
            error = f"{rows} could not be changed: backfill show {self.row} says why, backfill retry tries again."
            control.become(self.row, Backfill.Status.FAILED, error=error)
        else:
            control.become(self.row, Backfill.Status.SUCCEEDED, verified_at=Now())

    def _cut(self, part: BackfillRange) -> None:
        parts = ranges.parts_of(self.connection, self.model)
        if self.row.order == KEYS:
            cut = ranges.cut_by_keys(self.connection, self.model, parts)
        else:
            cut = ranges.cut_by_blocks(parts, striped=self.row.order == STRIPES)
        BackfillRange.objects.using(self.batches.alias).bulk_create(
            BackfillRange(backfill=self.row, sweep=part.sweep, number=number, **bounds)
            for number, bounds in enumerate(cut, 1)
        )


def _are_enough(rounds: list[float]) -> bool:
    """Whether there were more than ``ROUNDS`` rounds over longer than PATIENCE."""
    return len(rounds) > ROUNDS and rounds[-1] - rounds[0] > conf.PATIENCE


def _keep_coming(how_many: str) -> str:
    return f"Rows that are still to do keep coming ({how_many}): let the code that writes them fill them, too."
