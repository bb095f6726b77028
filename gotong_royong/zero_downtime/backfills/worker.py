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

import psycopg
from django.db import Error, ProgrammingError, connections, models
from django.db.models.functions import Now

from ..conf import conf
from ..exceptions import BackfillFailed, BackfillRefused, counted, summary
from ..models import Backfill, BackfillRange
from ..postgres import catalog, locks
from . import control, ranges, statements
from .batches import IN_QUEUE, LEFT, Batches
from .changes import Changes
from .declarations import declared, model_of
from .ranges import LeaseLost
from .sizes import TARGET
from .statements import KEYS, STRIPES, Work
from .throttle import BACKFILL, Throttle

POLL = 0.1  # seconds between two looks for a range
MOST_SWEEPS = 10  # where each has left more than LEFT rows, somebody makes them as fast as they are done
ROUNDS = 10  # of a look that are in vain before its patience is at an end: one of them may take longer than that
AT_ONCE = 5.0  # seconds that a look may take in one statement, which asks nobody; then it goes in slices

# The statistics are those of before it began, so that the planner would expect to find rows at once. A small table is
# read before helpers have come (https://www.postgresql.org/docs/current/runtime-config-query.html).
IN_PARALLEL = {"parallel_setup_cost": "0", "parallel_tuple_cost": "0", "min_parallel_table_scan_size": "64MB"}


SETTINGS = {"application_name": BACKFILL, **locks.ALL_ROWS}


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
        self._committed, self._is_allowed = 0, False
        self._looks = self._reads = False

    @property
    def work(self) -> Work:
        return self.changes.work

    @property
    def looks(self) -> bool:
        """Whether it looks for what is left and is not held back: nobody can go on with that where it has stopped."""
        return self._looks and not self.batches.is_resting

    def cancel_look(self) -> None:
        """End the statement that reads a table for what is left, if there is one. For another thread to call."""
        if self._reads:
            with suppress(Error, psycopg.Error):
                self.connection.connection.cancel_safe()

    def run(self) -> Backfill:
        """Work until it has ended, is paused, or is to stop; return what the database says of it then.

        Raises:
            BackfillFailed: when it cannot go on; the backfill's status says so, too.
            BackfillRefused: when somebody has taken it back meanwhile.
            TransactionPooling: where session settings and leases mean nothing.
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
        """Hold the lock by which migrations know that it is a worker who waits for them, and no user."""
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
            with suppress(BackfillRefused):  # another worker was quicker
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
        """Return the order in which it goes, which is that in which it went before it was paused, or by other code."""
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

    def _is_called_off(self, error: Exception) -> bool:
        """Whether a statement was canceled because it is to stop, or is no longer to go on."""
        if locks.sqlstate(error) != locks.QUERY_CANCELED:
            return False
        return self.stop() or not ranges.is_running(self.connection, self.row)

    def _or_fail(self, action: Callable[[], Any]) -> Any:
        """Do something; where it fails for good, write that down, so that all workers stop."""
        try:
            return action()
        except (BackfillRefused, LeaseLost):
            raise LeaseLost from None  # somebody has controlled it in this moment
        except Exception as error:
            if locks.is_lost(error):
                raise
            if self._is_called_off(error):
                raise LeaseLost from None
            text = summary(error)
            with suppress(BackfillRefused):
                control.become(self.row, Backfill.Status.FAILED, error=text)
            raise BackfillFailed(
                f"{self.row} failed. {text}\nWhat it has done stays. Mend it, then: backfill retry {self.row}"
            ) from error

    def _go_through(self, part: BackfillRange) -> None:
        by_blocks = self._walk_in_python if self.batches.in_python else self._walk_blocks
        walk = self._look if part.number == 0 else self._walk_keys if self.row.order == KEYS else by_blocks
        self.batches.forget_what_was_said()
        self._looks = part.number == 0
        try:
            self.batches.rest(part, 0.0)
            with suppress(LeaseLost):
                self._or_fail(self.changes.leave_alone_what_is_set_aside)
                self._or_fail(lambda: self._unless_dropped(part, walk))
        finally:
            self._looks = False
            with suppress(Error):
                ranges.release(self.connection, part)

    def _unless_dropped(self, part: BackfillRange, walk: Callable[[BackfillRange], None]) -> None:
        """Go through a range; of a partition that somebody drops or detaches, nothing is left to do."""
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

    def _look(self, part: BackfillRange) -> None:
        """Do what is left if that is little; if it is more, cut the table into the ranges of a sweep.

        It may have to read the whole table to find the rows, so it holds no lock of a row while it does. Where it has
        done what it found and finds more, somebody makes rows that are to do: that is said, and ends it in the end.
        """
        all_rows = self.work.declaration.where is None
        in_vain, chased, found = list[float](), list[float](), 0
        if part.sweep > MOST_SWEEPS:
            raise BackfillFailed(_keep_coming(f"{LEFT:,} and more in each of {MOST_SWEEPS} sweeps"))
        while not self.stop():
            if not ranges.renew(self.connection, part):
                raise LeaseLost
            self.batches.held_up = ""
            keys, done = self.changes.to_try_again() if all_rows else self._left(), 0
            if keys is None:
                self.batches.rest(part, 0.0)
                if self.batches.held_up == locks.LOCK_NOT_AVAILABLE:
                    self.batches.say("somebody keeps the table locked")
                time.sleep(POLL)
                continue
            is_more = part.sweep == 1 if all_rows else len(keys) == LEFT
            for rows, _ in self.batches.by_keys(part, keys):
                done += rows
                if is_more and done:
                    break
            self.changes.leave_alone_what_is_set_aside()
            if keys == [] or (is_more and done):  # and where has become false for those
                if self.batches.finish(part, self._cut if is_more else self._end):
                    return
            elif done:
                chased.append(time.monotonic())
                if len(chased) > 1:
                    found += done
                    self.batches.say(told := _keep_coming(f"{found:,} since it had done all"))
                    if _are_enough(chased):
                        raise BackfillFailed(told)
                in_vain.clear()
                continue
            in_vain.append(time.monotonic())
            if _are_enough(in_vain):
                raise BackfillFailed(self.batches.why_held_up())
            time.sleep(POLL)

    def _left(self) -> list[Any] | None:
        """Return the keys of rows that are left to do, as many as are done by their keys.

        Locks none of them (ACCESS SHARE on the table until the end).

        Returns:
            None if it is to stop, or if the table is not to be read now.
        """
        in_one = self.throttle.at_full_speed or self.row.order == KEYS
        is_alone = not self.throttle.look().reason
        if in_one or is_alone:
            keys = self.batches.unless_held_up(partial(self._left_in_one, in_parallel=is_alone, in_time=not in_one))
            if in_one or keys is not None or self.batches.held_up != locks.QUERY_CANCELED:
                return keys
        return self.batches.unless_held_up(lambda: self.batches.left_in_slices(LEFT))

    def _left_in_one(self, *, in_parallel: bool, in_time: bool) -> list[Any]:
        settings = {"lock_timeout": locks.milliseconds(IN_QUEUE)} | (IN_PARALLEL if in_parallel else {})
        settings["statement_timeout"] = locks.milliseconds(AT_ONCE) if in_time else "0"
        settings |= locks.no_transaction_timeout(self.connection)
        with locks.session_settings(self.connection, **settings):
            self._reads = True
            try:
                return list(self.work.to_do.values_list("pk", flat=True)[:LEFT])
            finally:
                self._reads = False

    def _end(self, _: BackfillRange) -> None:
        """Say that nothing is left, but for the rows that were set aside."""
        if count := self.changes.given_up():
            rows = counted(count, "row")
            error = f"{rows} could not be changed: backfill show {self.row} says why, backfill retry tries again."
            control.become(self.row, Backfill.Status.FAILED, error=error)
        else:
            control.become(self.row, Backfill.Status.SUCCEEDED, verified_at=Now())

    def _cut(self, part: BackfillRange) -> None:
        parts = ranges.parts_of(self.connection, self.work.model)
        if self.row.order == KEYS:
            cut = ranges.cut_by_keys(self.connection, self.work.model, parts)
        else:
            cut = ranges.cut_by_blocks(parts, striped=self.row.order == STRIPES)
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
            elif end - at > 1:
                size.now = (end - at) // 2
                continue
            else:
                self._by_keys(part, at, end)
            at = end

    def _walk_in_python(self, part: BackfillRange) -> None:
        """Go through blocks for ``process``, which may take any time for a row: a batch may be less than a block."""
        at, size = part.lower if part.cursor is None else part.cursor, self.batches.size
        while at < part.upper and not self.stop():
            end = min(at + size.now, part.upper)
            size.follow(end - at, self._by_keys(part, at, end), self.batches.target)  # in however many batches
            at = end

    def _by_keys(self, part: BackfillRange, at: int, end: int) -> float:
        """Change the rows of these blocks by their keys, and go on after them; return the seconds that it took.

        What somebody keeps locked is left to the next sweep.
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


def _are_enough(rounds: list[float]) -> bool:
    """Whether the times of these rounds say that the patience is at its end: not that a few have taken that long."""
    return len(rounds) > ROUNDS and rounds[-1] - rounds[0] > conf.PATIENCE


def _keep_coming(how_many: str) -> str:
    return f"Rows that are still to do keep coming ({how_many}): let the code that writes them fill them, too."
