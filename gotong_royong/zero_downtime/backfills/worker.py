"""How does a worker go through a backfill's ranges until nothing is left to do?

A batch, where its range goes on, and what it counts are one transaction. Its size follows the time that it took. What
got no lock or took too long is tried again in half the size, and left to the next sweep in the end. What a row failed
is tried again with savepoints, which find that row. Each sweep begins with a look for what is left, which also finds
the rows that moved on in the last one. That no row is left verifies it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

from django.db import Error, OperationalError, connections, models, transaction
from django.db.models.functions import Now

from gotong_royong.zero_downtime import catalog, locks
from gotong_royong.zero_downtime.backfills import ranges, statements, steering
from gotong_royong.zero_downtime.backfills.changes import Changes, is_lost
from gotong_royong.zero_downtime.backfills.declarations import declared, model_of
from gotong_royong.zero_downtime.backfills.ranges import LetGo
from gotong_royong.zero_downtime.backfills.sizes import AMONG_OTHERS, FIRST, FIRST_IN_PYTHON, LARGEST, TARGET, Size
from gotong_royong.zero_downtime.backfills.statements import KEYS, STRIPES, Work
from gotong_royong.zero_downtime.backfills.throttle import APPLICATION, Throttle
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused, counted, summary
from gotong_royong.zero_downtime.models import Backfill, BackfillRange

LONGEST = 4  # times that, after which its statement is canceled
SMALLEST = 5.0  # seconds after which that of the smallest batch is
LEFT = 1_000  # rows that are done by their keys, as they were found, instead of in another sweep
POLL = 0.1  # seconds between two looks for a range
MOST_SWEEPS = 10  # where each has left more than LEFT rows, somebody makes them as fast as they are done

# https://www.postgresql.org/docs/current/errcodes-appendix.html
NOT_NOW = {locks.LOCK_NOT_AVAILABLE, locks.DEADLOCK, locks.QUERY_CANCELED, "40001"}


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
        self.row, self.stop, self.target, self.renews = row, stop, target, model is None
        self.alias = str(row._state.db)
        self.connection = connections[self.alias]
        declaration = declared(row.name)
        self.changes = Changes(row, Work(declaration, model or model_of(declaration), self.alias))
        self.table = self.connection.ops.quote_name(self.work.model._meta.db_table)
        self.throttle = Throttle(self.alias, self.table, at_full_speed=at_full_speed)
        self.some = Size(FIRST_IN_PYTHON if self.in_python else LEFT // 4, LARGEST[KEYS])
        self._sizes = {
            order: Size(FIRST_IN_PYTHON if self.in_python else first, LARGEST[order]) for order, first in FIRST.items()
        }
        self._said = ""
        self._lost_at: float | None = None

    @property
    def work(self) -> Work:
        return self.changes.work

    @property
    def size(self) -> Size:
        """How many blocks or rows the next batch has; ``some`` is for rows that are changed by their keys."""
        return self._sizes[self.row.order]

    @property
    def in_python(self) -> bool:
        return self.work.declaration.has_process()

    def run(self) -> Backfill:
        """Work until it has ended, is paused, or is to stop; return what the database says of it then.

        Raises:
            BackfillFailed: when it cannot go on; the backfill's status says so, too.
            BackfillRefused: when somebody has taken it back meanwhile.
        """
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

    def _next(self) -> bool:
        """Go through one more range, if there is one; return whether the backfill is still running."""
        steering.refresh(self.row)
        if self.row.status == Backfill.Status.PENDING:
            order = self._or_fail(self.work.order)
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

    def _renew(self, error: Exception) -> None:
        """Get a new connection in place of one that was lost, for as long as the patience lasts."""
        if not self.renews or not is_lost(error):
            raise error
        self._lost_at = self._lost_at or time.monotonic()
        if time.monotonic() - self._lost_at > conf.PATIENCE:
            raise error
        if locks.sqlstate(error) == locks.IDLE_IN_TRANSACTION:
            self._or_fail(self._take_fewer)
        self.connection.close()
        time.sleep(POLL)
        with suppress(Error), self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('application_name', %s, false)", [APPLICATION])

    def _take_fewer(self) -> None:
        """Make the next batch smaller, for the session of the last one was ended."""
        if self.size.now == self.some.now == 1:
            raise BackfillFailed(
                f"Its process did not use the database for more than {ranges.LEASE:g} s over a single row, which stays "
                "locked meanwhile. Let it do there only what is quick."
            )
        self.size.divide(8)
        self.some.divide(8)

    def _or_fail(self, action: Callable[[], Any]) -> Any:
        """Do something; where it fails for good, write that down, so that all workers stop."""
        try:
            return action()
        except BackfillRefused:
            raise LetGo from None  # somebody has steered it in this moment
        except (BackfillFailed, Error, LookupError, AttributeError, TypeError, ValueError) as error:
            if is_lost(error):
                raise
            text = summary(error)
            with suppress(BackfillRefused):
                steering.become(self.row, Backfill.Status.FAILED, error=text)
            raise BackfillFailed(
                f"{self.row} failed. {text}\nWhat it has done stays. Mend it, then: backfill retry {self.row}"
            ) from error

    def _go_through(self, part: BackfillRange) -> None:
        self.changes.leave_alone_what_is_set_aside()
        by_blocks = self._walk_in_python if self.in_python else self._walk_blocks
        walk = self._look if part.number == 0 else self._walk_keys if self.row.order == KEYS else by_blocks
        try:
            self.throttle.hold_back(0.0, self._say, self.stop)
            with suppress(LetGo):
                self._or_fail(lambda: walk(part))
        finally:
            with suppress(Error):
                ranges.release(self.connection, part)

    @contextmanager
    def _batch(self, part: BackfillRange, size: int) -> Iterator[None]:
        longest = SMALLEST if size == 1 else LONGEST * self.target
        with transaction.atomic(using=self.alias):
            if not ranges.is_still_ours(self.connection, part, longest):
                raise LetGo
            yield

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
            keys, done = self.changes.to_try_again() if all_rows else self._left(), 0
            is_more = part.sweep == 1 if all_rows else len(keys) == LEFT
            for rows, _ in self._change_by_keys(part, keys):
                done += rows
                if is_more and done:
                    break
            self.changes.leave_alone_what_is_set_aside()
            if not keys or (is_more and done):  # and where has become false for those
                if self._finish(part, self._cut if is_more else self._end):
                    return
            elif done:
                if chased_since is None:
                    chased_since = time.monotonic()
                else:
                    found += done
                    self._say(told := _keep_coming(f"{found:,} since it had done all"))
                    if time.monotonic() - chased_since > conf.PATIENCE:
                        raise BackfillFailed(told)
                in_vain_since = None
                continue
            in_vain_since = in_vain_since or time.monotonic()
            if time.monotonic() - in_vain_since > conf.PATIENCE:
                raise BackfillFailed("Somebody keeps the table or its last rows locked. End that session.")
            time.sleep(POLL)

    def _left(self) -> list[Any]:
        """Return the keys of rows that are left to do, as many as are done by their keys."""
        with locks.session_settings(self.connection, statement_timeout="0"):
            return list(self.work.to_do.order_by().values_list("pk", flat=True)[:LEFT])

    def _finish(self, part: BackfillRange, action: Callable[[BackfillRange], object]) -> bool:
        """End the look with what is to be done then; return whether that got its locks."""
        try:
            with self._batch(part, 1):
                action(part)
                ranges.advance(self.connection, part, to=None, share=1.0, rows=0, seconds=0.0)
        except OperationalError as error:
            if locks.sqlstate(error) not in NOT_NOW:
                raise
            return False
        return True

    def _change_by_keys(
        self, part: BackfillRange, keys: Sequence[Any], cursor: Any = None
    ) -> Iterator[tuple[int, float]]:
        """Change the rows with these keys, some after the other; yield how many of some, and the seconds it took."""
        at = 0
        while at < len(keys) and not self.stop():
            some = keys[at : at + self.some.now]
            rows, seconds = self._change_some(part, some, cursor)
            at += len(some)
            self.some.follow(len(some), seconds, self._target())
            yield rows, seconds

    def _change_some(self, part: BackfillRange, keys: Sequence[Any], cursor: Any) -> tuple[int, float]:
        """Change those of the rows that nobody else has locked; return how many, and the seconds it took."""
        started = time.monotonic()

        def batch() -> int:
            with self._batch(part, len(keys)):
                unlocked = statements.unlocked_keys(self.work, keys)
                self.changes.of_keys(unlocked)
                seconds = time.monotonic() - started
                share = 0.0 if cursor is None else _share(part, cursor)
                ranges.advance(self.connection, part, to=cursor, share=share, rows=len(unlocked), seconds=seconds)
                return len(unlocked)

        try:
            rows = self.changes.carefully(batch)
        except OperationalError as error:
            if locks.sqlstate(error) not in NOT_NOW:
                raise
            rows = 0
        return rows, time.monotonic() - started

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
        at = part.lower if part.cursor is None else part.cursor
        while at < part.upper and not self.stop():
            end = min(at + self.size.now, part.upper)
            batches = statements.batches_in(at, end, striped=self.row.order == STRIPES)
            slowest: float | None = 0.0
            for number, (lower, upper, stripe) in enumerate(batches, 1):
                here = statements.in_blocks(self.work.model, lower, upper, stripe)
                to = end if number == len(batches) else at
                took = self._change_at(part, here, to, end - at)
                slowest = None if took is None or slowest is None else max(slowest, took)
                if slowest is None:
                    break
            if slowest is not None:
                self.size.follow(end - at, slowest, self._target())
                at = end
            elif end - at > 1:
                self.size.now = (end - at) // 2
            else:
                self._go_on_at(part, end)
                at = end

    def _walk_in_python(self, part: BackfillRange) -> None:
        """Go through blocks for ``process``, which may take any time for a row: a batch may be less than a block."""
        at = part.lower if part.cursor is None else part.cursor
        while at < part.upper and not self.stop():
            end, took = min(at + self.size.now, part.upper), 0.0
            here = statements.in_blocks(self.work.model, at, end, None)
            keys = statements.keys_of(self.work, here, part.partition, lock=False)
            for _, seconds in self._change_by_keys(part, keys, at):
                took += seconds
                self.throttle.hold_back(seconds, self._say, self.stop)
            if not self.stop():
                self._go_on_at(part, end)
                self.size.follow(end - at, took, self._target())
                at = end

    def _change_at(self, part: BackfillRange, here: Any, to: int, size: int) -> float | None:
        """Do a batch; return the seconds that it took, or None if it got no lock or took too long."""
        started = time.monotonic()

        def batch() -> None:
            with self._batch(part, size):
                rows = self.changes.of(here, part.partition)
                seconds = time.monotonic() - started
                ranges.advance(self.connection, part, to=to, share=_share(part, to), rows=rows, seconds=seconds)

        try:
            self.changes.carefully(batch)
        except OperationalError as error:
            if locks.sqlstate(error) not in NOT_NOW:
                raise
            return None
        took = time.monotonic() - started
        self.throttle.hold_back(took, self._say, self.stop)
        return took

    def _go_on_at(self, part: BackfillRange, block: int) -> None:
        """Leave what is before the block and not done, since somebody keeps it locked, to the next sweep."""
        with self._batch(part, 1):
            ranges.advance(self.connection, part, to=block, share=_share(part, block), rows=0, seconds=0.0)

    def _walk_keys(self, part: BackfillRange) -> None:
        at, finished, since = part.lower if part.cursor is None else part.cursor, False, time.monotonic()
        done = part.rows_done

        def batch() -> tuple[Any, int]:
            with self._batch(part, self.size.now):
                end = statements.key_at(self.work, at, part.upper, self.size.now)
                rows = self.changes.of(statements.in_keys(self.work.model, at, end or part.upper))
                share = 1.0 if end is None else min(0.99, (done + rows) / self._rows_in_a_range)
                seconds = time.monotonic() - started
                ranges.advance(self.connection, part, to=end, share=share, rows=rows, seconds=seconds)
                return end, rows

        while not finished and not self.stop():
            started = time.monotonic()
            try:
                end, rows = self.changes.carefully(batch)
            except OperationalError as error:
                if locks.sqlstate(error) not in NOT_NOW:
                    raise
                if time.monotonic() - since > conf.PATIENCE:
                    raise BackfillFailed("Somebody keeps the next row locked. End that session.") from error
                self.size.divide(2)
                time.sleep(POLL)
                continue
            finished = end is None
            at, done, since = end, done + rows, time.monotonic()
            took = time.monotonic() - started
            self.size.follow(rows if finished else self.size.now, took, self._target())
            self.throttle.hold_back(took, self._say, self.stop)

    @cached_property
    def _rows_in_a_range(self) -> float:
        table = catalog.tables(self.connection, [self.table]).get(self.table)
        rows = table.rows if table and table.rows else 1
        return rows / max(1, self.row.ranges.filter(sweep=self.row.sweep, number__gt=0).count())

    def _target(self) -> float:
        return min(self.target, AMONG_OTHERS) if self.throttle.advice.reason else self.target

    def _say(self, reason: str) -> None:
        if reason != self._said:
            running = Backfill.objects.using(self.alias).filter(pk=self.row.pk, status=Backfill.Status.RUNNING)
            running.update(throttle=reason)
            self._said = reason


def _share(part: BackfillRange, block: int) -> float:
    return float((block - part.lower) / (part.upper - part.lower))


def _keep_coming(how_many: str) -> str:
    return f"Rows that are still to do keep coming ({how_many}): let the code that writes them fill them, too."
