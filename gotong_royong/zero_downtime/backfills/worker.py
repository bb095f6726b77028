"""How does a worker go through a backfill's ranges until nothing is left to do?

What got no lock or took too long is tried again in half the size, and left to the next sweep in the end. What a row
failed is tried again with savepoints, which find that row. Each sweep begins with a look for what is left, which also
finds the rows that moved on in the last one. That no row is left verifies it.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from django.db import Error, ProgrammingError, connections, models
from django.db.models.functions import Now

from gotong_royong.zero_downtime import catalog, locks
from gotong_royong.zero_downtime.backfills import ranges, statements, steering
from gotong_royong.zero_downtime.backfills.batches import LEFT, Batches
from gotong_royong.zero_downtime.backfills.changes import Changes
from gotong_royong.zero_downtime.backfills.declarations import declared, model_of
from gotong_royong.zero_downtime.backfills.ranges import LetGo
from gotong_royong.zero_downtime.backfills.sizes import TARGET
from gotong_royong.zero_downtime.backfills.statements import KEYS, STRIPES, Work
from gotong_royong.zero_downtime.backfills.throttle import APPLICATION, Throttle
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused, counted, summary
from gotong_royong.zero_downtime.models import Backfill, BackfillRange

POLL = 0.1  # seconds between two looks for a range
MOST_SWEEPS = 10  # where each has left more than LEFT rows, somebody makes them as fast as they are done

# The statistics are those of before it began, so that the planner would expect to find rows at once. A small table is
# read before helpers have come (https://www.postgresql.org/docs/current/runtime-config-query.html).
IN_PARALLEL = {"parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "64MB"}


class Worker:
    """Goes through one backfill in this thread; others may do so at the same time.

    Args:
        stop: whether to let go after the batch at hand.
        target: seconds that a batch shall take, which is how long others may wait for a row of it.
        at_full_speed: whether to pass over all reasons to go slower.
        model: a migration's historical model, to use in place of the code's. A migration's connection is not renewed
            when it is lost.
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

    @property
    def work(self) -> Work:
        return self.changes.work

    def run(self) -> Backfill:
        """Work until it has ended, is paused, or is to stop; return what the database says of it then.

        Raises:
            BackfillFailed: when it cannot go on; the backfill's status says so, too.
            BackfillRefused: when somebody has taken it back meanwhile.
            TransactionPooling: where session settings and leases mean nothing.
        """
        if self.renews:
            self._refuse_transaction_pooling()
        with locks.session_settings(self.connection, application_name=APPLICATION):
            while not self.stop():
                try:
                    if not self._next():
                        break
                    self._lost_at = None
                except Error as error:
                    self._renew(error)
        steering.refresh(self.row)
        return self.row

    def _refuse_transaction_pooling(self) -> None:
        self.connection.ensure_connection()
        other = self.connection.copy()
        try:
            locks.refuse_transaction_pooling(self.connection, other)
        finally:
            other.close()

    def _next(self) -> bool:
        """Go through one more range, if there is one; return whether the backfill is still running."""
        steering.refresh(self.row)
        if self.row.status == Backfill.Status.PENDING:
            order = self._or_fail(self._order)
            with suppress(BackfillRefused):  # another worker was quicker
                steering.become(self.row, Backfill.Status.RUNNING, order=order, started_at=self.row.started_at or Now())
        if self.row.status != Backfill.Status.RUNNING:
            return False
        if part := ranges.claim(self.connection, self.row):
            self._go_through(part)
        elif self.row.ranges.filter(sweep=self.row.sweep, finished_at=None).exists():
            time.sleep(POLL)
        else:
            ranges.begin_next_sweep(self.connection, self.row)
        return True

    def _order(self) -> str:
        """Return the order in which it goes, which is that in which it went before it was paused."""
        before, order = self.row.order, self.work.order()
        if before not in {"", KEYS} and order == KEYS:
            raise BackfillFailed(
                f"It was begun in the order of {before}, which its declaration or its table no longer allows."
            )
        return before or order

    def _renew(self, error: Exception) -> None:
        """Get a new connection in place of one that was lost, for as long as the patience lasts."""
        if not self.renews or not locks.is_lost(error):
            raise error
        self._lost_at = self._lost_at or time.monotonic()
        if time.monotonic() - self._lost_at > conf.PATIENCE:
            raise error
        if locks.sqlstate(error) == locks.IDLE_IN_TRANSACTION:
            self._or_fail(self.batches.take_fewer)
        self.connection.close()
        time.sleep(POLL)
        with suppress(Error), self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", [APPLICATION])

    def _or_fail(self, action: Callable[[], Any]) -> Any:
        """Do something; where it fails for good, write that down, so that all workers stop."""
        try:
            return action()
        except (BackfillRefused, LetGo):
            raise LetGo from None  # somebody has steered it in this moment
        except Exception as error:
            if locks.is_lost(error):
                raise
            text = summary(error)
            with suppress(BackfillRefused):
                steering.become(self.row, Backfill.Status.FAILED, error=text)
            raise BackfillFailed(
                f"{self.row} failed. {text}\nWhat it has done stays. Mend it, then: backfill retry {self.row}"
            ) from error

    def _go_through(self, part: BackfillRange) -> None:
        by_blocks = self._walk_in_python if self.batches.in_python else self._walk_blocks
        walk = self._look if part.number == 0 else self._walk_keys if self.row.order == KEYS else by_blocks
        self.batches.forget_what_was_said()
        try:
            self.batches.rest(part, 0.0)
            with suppress(LetGo):
                self._or_fail(self.changes.leave_alone_what_is_set_aside)
                self._or_fail(lambda: self._unless_dropped(part, walk))
        finally:
            with suppress(Error):
                ranges.release(self.connection, part)

    def _unless_dropped(self, part: BackfillRange, walk: Callable[[BackfillRange], None]) -> None:
        """Go through a range; of a partition that somebody drops meanwhile, nothing is left to do."""
        try:
            walk(part)
        except ProgrammingError:
            if not part.partition or catalog.table(self.connection, part.partition):
                raise
            self.batches.finish(part, lambda _: None)

    def _look(self, part: BackfillRange) -> None:
        """Do what is left if that is little; if it is more, cut the table into the ranges of a sweep.

        It may have to read the whole table to find the rows, so it holds no lock of a row while it does. Where it has
        done what it found and finds more, somebody makes rows that are to do: that is said, and ends it in the end.
        """
        all_rows = self.work.declaration.where is None
        in_vain_since, chased_since, found = None, None, 0
        if part.sweep > MOST_SWEEPS:
            raise BackfillFailed(_keep_coming(f"{LEFT:,} and more in each of {MOST_SWEEPS} sweeps"))
        while not self.stop():
            if not ranges.renew(self.connection, part):
                raise LetGo
            keys, done = self.changes.to_try_again() if all_rows else self.batches.unless_held_up(self._left), 0
            is_more = part.sweep == 1 if all_rows else len(keys or ()) == LEFT
            for rows, _ in self.batches.by_keys(part, keys or []):
                done += rows
                if is_more and done:
                    break
            self.changes.leave_alone_what_is_set_aside()
            if keys == [] or (is_more and done):  # and where has become false for those
                if self.batches.finish(part, self._cut if is_more else self._end):
                    return
            elif done:
                if chased_since is None:
                    chased_since = time.monotonic()
                else:
                    found += done
                    self.batches.say(told := _keep_coming(f"{found:,} since it had done all"))
                    if time.monotonic() - chased_since > conf.PATIENCE:
                        raise BackfillFailed(told)
                in_vain_since = None
                continue
            in_vain_since = in_vain_since or time.monotonic()
            if time.monotonic() - in_vain_since > conf.PATIENCE:
                raise BackfillFailed(self.batches.why_held_up())
            time.sleep(POLL)

    def _left(self) -> list[Any] | None:
        """Return the keys of rows that are left to do, as many as are done by their keys; None if it is to stop.

        Locks none (ACCESS SHARE on the table).
        """
        settings = {"statement_timeout": "0"}
        if not self.throttle.look().reason:
            settings |= IN_PARALLEL
        elif self.row.order != KEYS:
            return self.batches.left_in_slices(LEFT)
        with locks.session_settings(self.connection, **settings):
            return list(self.work.to_do.order_by().values_list("pk", flat=True)[:LEFT])

    def _end(self, _: BackfillRange) -> None:
        """Say that nothing is left, but for the rows that were set aside."""
        if count := self.changes.given_up():
            rows = counted(count, "row")
            error = f"{rows} could not be changed: backfill show {self.row} says why, backfill retry tries again."
            steering.become(self.row, Backfill.Status.FAILED, error=error)
        else:
            steering.become(self.row, Backfill.Status.SUCCEEDED, verified_at=Now())

    def _cut(self, part: BackfillRange) -> None:
        parts = ranges.parts_of(self.connection, self.work.model)
        by_keys = self.row.order == KEYS
        cut = ranges.cut_by_keys(self.connection, self.work.model, parts) if by_keys else ranges.cut_by_blocks(parts)
        BackfillRange.objects.using(self.alias).bulk_create(
            BackfillRange(backfill=self.row, sweep=part.sweep, number=number, **bounds)
            for number, bounds in enumerate(cut, 1)
        )

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
                at = end
            elif end - at > 1:
                size.now = (end - at) // 2
            else:
                self.batches.go_on_at(part, end)
                at = end

    def _walk_in_python(self, part: BackfillRange) -> None:
        """Go through blocks for ``process``, which may take any time for a row: a batch may be less than a block."""
        at, size = part.lower if part.cursor is None else part.cursor, self.batches.size
        while at < part.upper and not self.stop():
            end = min(at + size.now, part.upper)
            left = partial(statements.keys_of, self.work, statements.Blocks(at, end), part.partition, lock=False)
            keys = self.batches.unless_held_up(left)
            took = sum(seconds for _, seconds in self.batches.by_keys(part, keys or [], at))
            if not self.stop():
                self.batches.go_on_at(part, end)
                size.follow(end - at, took, self.batches.target)  # in however many batches
                at = end

    def _walk_keys(self, part: BackfillRange) -> None:
        at, since = part.lower if part.cursor is None else part.cursor, time.monotonic()
        while not self.stop():
            done = self.batches.next_keys(part, at, self._rows_in_a_range)
            if done is not None:
                (at, rows), since = done, time.monotonic()
                part.rows_done += rows
                if at is None:
                    return
            elif time.monotonic() - since > conf.PATIENCE:
                raise BackfillFailed(self.batches.why_held_up())
            else:
                time.sleep(POLL)

    @cached_property
    def _rows_in_a_range(self) -> float:
        table = catalog.tables(self.connection, [self.table]).get(self.table)
        rows = table.rows if table and table.rows else 1
        return rows / max(1, self.row.ranges.filter(sweep=self.row.sweep, number__gt=0).count())


def _keep_coming(how_many: str) -> str:
    return f"Rows that are still to do keep coming ({how_many}): let the code that writes them fill them, too."
