"""How does a worker go through a backfill's ranges until nothing is left to do?

Each sweep begins with its verification range, which also finds the rows that the last sweep missed. A batch that gets
no lock or takes too long is retried in half the size; a single row is left to the next sweep. A batch in which a row
fails is retried with savepoints, which find that row.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from django.db import Error, ProgrammingError, connections, models
from django.db.models.functions import Now

from ..conf import conf
from ..exceptions import BackfillFailed, BackfillRefused, summary
from ..models import Backfill, BackfillRange
from ..postgres import catalog, locks
from . import control, ranges, statements
from .batches import IN_QUEUE, POLL, Batches
from .changes import Changes
from .declarations import declared, model_of
from .ranges import LeaseLost
from .sizes import TARGET
from .statements import KEYS, STRIPES, Work
from .throttle import BACKFILL, Throttle
from .verification import Verification

SETTINGS = {"application_name": BACKFILL, **locks.ALL_ROWS}


class Worker:
    """Goes through one backfill in this thread. Other workers may do so at the same time.

    Args:
        stop: whether to let go after the current batch.
        target: seconds that a batch should take: others wait that long for one of its rows.
        at_full_speed: whether to ignore all reasons to go slower.
        model: a migration's historical model, used in place of the current one. A worker with a historical model runs
            on the migration's connection and does not replace it when it is lost.
    """

    def __init__(
        self,
        row: Backfill,
        *,
        stop: Callable[[], bool] = lambda: False,
        target: float = TARGET,
        at_full_speed: bool = False,
        model: type[models.Model] | None = None,
    ) -> None:
        self.row, self.stop, self.renews = row, stop, model is None
        self.alias = str(row._state.db)
        self.connection = connections[self.alias]
        declaration = declared(row.name)
        self.changes = Changes(row, Work(declaration, model or model_of(declaration, self.alias), self.alias))
        self.table = self.connection.ops.quote_name(self.work.model._meta.db_table)
        self.throttle = Throttle(self.alias, self.table, at_full_speed=at_full_speed)
        self.batches = Batches(row, self.changes, self.throttle, stop=stop, target=target)
        self._lost_at: float | None = None
        self._committed, self._is_allowed = 0, False
        self._verification: Verification | None = None

    @property
    def work(self) -> Work:
        return self.changes.work

    @property
    def verifies(self) -> bool:
        """Whether it verifies and is not held back. No other worker can continue a verification that stops."""
        return self._verification is not None and not self.batches.is_resting

    def cancel_verification(self) -> None:
        """End the statement that verifies, if there is one. Another thread calls this."""
        if verification := self._verification:
            verification.cancel()

    def run(self) -> Backfill:
        """Work until the backfill ends or pauses, or ``stop`` says so; return its row as it is then.

        Raises:
            BackfillFailed: if it cannot go on. The status of the backfill is FAILED then.
            BackfillRefused: if somebody has taken it back meanwhile.
            TransactionPooling: if a pooler changes the session between transactions: settings and leases are lost.
        """
        if self.renews:
            self._refuse_transaction_pooling()
        with suppress(LeaseLost), locks.session_settings(self.connection, **SETTINGS):
            try:
                self._be_known()
                while not self.stop():
                    try:
                        if not self._next():
                            break
                    except Error as error:
                        if not self._is_called_off(error):
                            self._renew(error)
            finally:
                with suppress(Error), self.connection.cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_unlock_shared(%s)", [locks.WORKER])
        control.refresh(self.row)
        return self.row

    def _be_known(self) -> None:
        """Hold the advisory lock by which a migration tells a worker from a user."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock_shared(%s)", [locks.WORKER])

    def _refuse_transaction_pooling(self) -> None:
        self.connection.ensure_connection()
        other = self.connection.copy()
        try:
            locks.refuse_transaction_pooling(self.connection, other)
        finally:
            other.close()

    def _next(self) -> bool:
        """Go through one more range, if there is one; return whether the backfill is still running."""
        control.refresh(self.row)
        if self.row.status == Backfill.Status.PENDING:
            order = self._or_fail(self._order)
            with suppress(BackfillRefused):  # another worker was faster
                control.become(self.row, Backfill.Status.RUNNING, order=order, started_at=self.row.started_at or Now())
        if self.row.status != Backfill.Status.RUNNING:
            return False
        if not self._is_allowed:
            self._or_fail(self._order)
            self._is_allowed = True
        if part := ranges.claim(self.connection, self.row):
            self._go_through(part)
        elif self.row.ranges.using(self.alias).filter(sweep=self.row.sweep, finished_at=None).exists():
            time.sleep(POLL)
        else:
            ranges.begin_next_sweep(self.connection, self.row)
        return True

    def _order(self) -> str:
        """Return the order of the ranges. A backfill that was paused keeps its order."""
        before, order = self.row.order, self.work.order()
        if before not in {"", KEYS} and order == KEYS:
            raise BackfillFailed(
                f"It was begun in the order of {before}, which its declaration or its table no longer allows."
            )
        return before or order

    def _renew(self, error: Exception) -> None:
        """Begin again with a new connection. Raise the error once PATIENCE is over without a committed batch."""
        if not (self.renews and self._passes(error)):
            raise error
        if self.batches.committed > self._committed:
            self._lost_at, self._committed = None, self.batches.committed
        self._lost_at = self._lost_at or time.monotonic()
        if time.monotonic() - self._lost_at > conf.PATIENCE:
            raise error
        if locks.sqlstate(error) == locks.IDLE_IN_TRANSACTION:
            self._or_fail(self.batches.take_fewer)
        self.connection.close()
        time.sleep(POLL)
        with suppress(Error):
            locks.put(self.connection, SETTINGS)
            self._be_known()

    def _passes(self, error: Exception) -> bool:
        """Whether a new session may get on: this one is lost, or somebody canceled its statement.

        A pause cancels the statement that verifies. It may hit the next one, after another operator's resume.
        """
        return locks.is_lost(error) or (self.renews and locks.sqlstate(error) == locks.QUERY_CANCELED)

    def _is_called_off(self, error: Exception) -> bool:
        """Whether a statement was canceled because the worker or the backfill stops."""
        if locks.sqlstate(error) != locks.QUERY_CANCELED:
            return False
        return self.stop() or not ranges.is_running(self.connection, self.row)

    def _or_fail(self, action: Callable[[], Any]) -> Any:
        """Call the action. If it fails for good, record that, so that all workers stop."""
        try:
            return action()
        except (BackfillRefused, LeaseLost):
            raise LeaseLost from None  # somebody controlled the backfill at this moment
        except Exception as error:
            if self._is_called_off(error):
                raise LeaseLost from None
            if self._passes(error):
                raise
            text = summary(error)
            with suppress(BackfillRefused):
                control.become(self.row, Backfill.Status.FAILED, error=text)
            raise BackfillFailed(
                f"{self.row} failed. {text}\nThe rows that it has changed stay changed. Remove the cause, then run: "
                f"backfill retry {self.row}"
            ) from error

    def _go_through(self, part: BackfillRange) -> None:
        by_blocks = self._walk_in_python if self.batches.in_python else self._walk_blocks
        walk = self._verify if part.number == 0 else self._walk_keys if self.row.order == KEYS else by_blocks
        self.batches.forget_what_was_said()
        try:
            self.batches.rest(part, 0.0)
            with suppress(LeaseLost):
                self._or_fail(self.changes.leave_alone_what_is_set_aside)
                self._or_fail(lambda: self._unless_dropped(part, walk))
        finally:
            with suppress(Error):
                ranges.release(self.connection, part)

    def _unless_dropped(self, part: BackfillRange, walk: Callable[[BackfillRange], None]) -> None:
        """Go through a range. If its partition is dropped or detached, finish it: nothing is left to do."""
        is_there = partial(ranges.is_part, self.connection, self.work.model, part.partition)
        if is_there():
            try:
                walk(part)
            except ProgrammingError:
                if is_there():
                    raise
            else:
                return
        self.batches.finish(part, lambda _: None)

    def _verify(self, part: BackfillRange) -> None:
        self._verification = Verification(self.batches, part)
        try:
            self._verification.run()
        finally:
            self._verification = None

    def _walk_blocks(self, part: BackfillRange) -> None:
        at, size = part.lower if part.cursor is None else part.cursor, self.batches.size
        striped = self.row.order == STRIPES
        while at < part.upper and not self.stop():
            end = min(at + size.now, part.upper)
            batches = statements.batches_in(at, end, striped=striped)
            slowest: float | None = 0.0
            for number, blocks in enumerate(batches, 1):
                if self.stop():
                    return
                to = end if number == len(batches) else at
                took = self.batches.by_blocks(part, blocks, to=to, size=end - at)
                slowest = None if took is None or slowest is None else max(slowest, took)
                if slowest is None:
                    break
            if slowest is not None:
                size.follow(end - at, slowest, self.batches.target_now())
                self.batches.changed(part, at, end)
            elif end - at > 1:
                size.now = (end - at) // 2
                continue
            else:
                self._by_keys(part, at, end)
            at = end

    def _walk_in_python(self, part: BackfillRange) -> None:
        """Go through blocks for ``process``. One row may take any time, so a batch may be less than a block."""
        at, size = part.lower if part.cursor is None else part.cursor, self.batches.size
        while at < part.upper and not self.stop():
            end = min(at + size.now, part.upper)
            size.follow(end - at, self._by_keys(part, at, end), self.batches.target)
            at = end

    def _by_keys(self, part: BackfillRange, at: int, end: int) -> float:
        """Change the rows of these blocks by their keys, then advance the range; return the seconds that it took.

        The next sweep changes the rows that others keep locked.
        """
        blocks = statements.Blocks(at, end)
        keys_of = partial(statements.keys_of, self.work, blocks, part.partition, lock=False)
        with locks.session_settings(self.connection, lock_timeout=locks.milliseconds(IN_QUEUE)):
            keys = self.batches.unless_held_up(keys_of)
        took = sum(seconds for _, seconds in self.batches.by_keys(part, keys or [], at))
        if not self.stop():
            self.batches.go_on_at(part, end)
        return took

    def _walk_keys(self, part: BackfillRange) -> None:
        at, since = part.lower if part.cursor is None else part.cursor, time.monotonic()
        while not self.stop():
            done = self.batches.next_keys(part, at, lambda: self._rows_in_a_range)
            if done is not None:
                (at, rows), since = done, time.monotonic()
                part.rows_done += rows
                if at is None:
                    return
            elif time.monotonic() - since > conf.PATIENCE:
                raise BackfillFailed(self.batches.why_held_up())
            elif not ranges.renew(self.connection, part):
                raise LeaseLost
            else:
                if self.batches.size.now == 1:
                    self.batches.say(self.batches.why_held_up())
                time.sleep(POLL)

    @cached_property
    def _rows_in_a_range(self) -> float:
        table = catalog.tables(self.connection, [self.table]).get(self.table)
        rows = table.rows if table and table.rows else 1
        parts = self.row.ranges.using(self.alias).filter(sweep=self.row.sweep, number__gt=0)
        return rows / max(1, parts.count())
