"""How does a worker change one batch of rows, and how many rows has the next batch?

A batch is one transaction: it changes the rows, advances the range and adds to the counts. Its size follows the time
that the last one took. A batch that gets no lock or takes too long is rolled back; the caller retries it.

While others are at work a batch goes on in slices of a few blocks with pauses in between. A commit waits until all
earlier WAL is on the disk, so slices keep that WAL small.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from django.db import OperationalError, connections, transaction

from ..conf import conf
from ..exceptions import BackfillFailed
from ..models import Backfill, BackfillRange
from ..postgres import locks
from . import ranges, statements
from .changes import Changes, TooMany
from .ranges import BLOCKS, LeaseLost
from .sizes import AMONG_OTHERS, FEW, FIRST, FIRST_IN_PYTHON, GAP, LARGEST, READ, SLICE, Size
from .statements import KEYS, Blocks
from .throttle import Throttle

T = TypeVar("T")

POLL = 0.1  # seconds between two attempts
LONGEST = 4  # times the target of a batch, after which PostgreSQL cancels its statement
SMALLEST = 5.0  # seconds after which it cancels the statement of a batch of one row or block
NOT_YET = 2  # the last changes whose blocks are not pruned yet: other workers may still see the old rows
IN_QUEUE = 5.0  # seconds that a verification waits for its table before it asks whether to stop
LEFT = 1_000  # rows that a verification changes itself; for more it begins a sweep

# https://www.postgresql.org/docs/current/errcodes-appendix.html
NOT_NOW = {locks.LOCK_NOT_AVAILABLE, locks.DEADLOCK, locks.QUERY_CANCELED, "40001"}


class Batches:
    """The batches of one worker. Each locks its rows (FOR NO KEY UPDATE) and its range until it commits.

    Args:
        stop: whether to let go after the current batch.
        target: seconds that a batch should take: others wait that long for one of its rows.
    """

    def __init__(
        self, row: Backfill, changes: Changes, throttle: Throttle, *, stop: Callable[[], bool], target: float
    ) -> None:
        self.row, self.changes, self.throttle, self.stop, self.target = row, changes, throttle, stop, target
        self.alias = changes.alias
        self.connection = connections[self.alias]
        self.in_python = changes.work.declaration.has_process()
        self.some = Size(FIRST_IN_PYTHON if self.in_python else LEFT // 4, LARGEST[KEYS])
        self.slice, self.some_to_read = Size(1, BLOCKS), Size(1, BLOCKS)
        self._sizes = {
            order: Size(FIRST_IN_PYTHON if self.in_python else first, LARGEST[order]) for order, first in FIRST.items()
        }
        self._changed: deque[tuple[str, list[tuple[int, int]]]] = deque()
        self._blocks_before: dict[str, int] = {}
        self.committed = 0
        self.held_up = ""
        self.is_resting = False
        self._said: str | None = None

    @property
    def is_paced(self) -> bool:
        """Whether the throttle gave a reason to go slower when it was asked last."""
        return bool(self.throttle.advice.reason)

    @property
    def size(self) -> Size:
        """The number of blocks or rows of the next batch; ``some`` is that of a batch by keys."""
        return self._sizes[self.row.order]

    def take_fewer(self) -> None:
        """Make the next batch smaller: PostgreSQL ended the session of the last one.

        Raises:
            BackfillFailed: if the last one was a single row.
        """
        if self.size.now == self.some.now == 1:
            raise BackfillFailed(
                f"Its process method did not use the database for more than {ranges.LEASE:g} s for a single row, which "
                "stays locked meanwhile. Do only what is quick there."
            )
        self.size.divide(8)
        self.some.divide(8)

    @contextmanager
    def fenced(self, part: BackfillRange, size: int) -> Iterator[None]:
        """Open a batch's transaction. Locks the range's row (FOR UPDATE).

        Raises:
            LeaseLost: if another worker has the range now, or the backfill stops.
        """
        longest = SMALLEST if size == 1 else LONGEST * self.target
        with transaction.atomic(using=self.alias):
            if not ranges.is_still_ours(self.connection, part, longest, paced=self.is_paced):
                raise LeaseLost
            yield
        self.committed += 1

    def unless_held_up(self, batch: Callable[[], T]) -> T | None:
        """Return what the batch returns; None if it got no lock or took too long. ``held_up`` is the SQLSTATE then.

        Also None if a row fails in a batch that is too large to search for it.
        """
        try:
            return batch()
        except TooMany:
            return None
        except OperationalError as error:
            state = locks.sqlstate(error)
            if state not in NOT_NOW:
                raise
            self.held_up = state or ""
            return None

    def why_held_up(self) -> str:
        """Say what held up the last batch, and what to do about it."""
        if self.held_up == locks.QUERY_CANCELED:
            return (
                f"One of its last rows takes longer than {SMALLEST:g} s to change, so PostgreSQL cancels that. Make "
                "its update, or the trigger of the table, faster."
            )
        return "Somebody keeps the table or its last rows locked. End that session."

    def by_blocks(self, part: BackfillRange, blocks: Blocks, *, to: int, size: int) -> float | None:
        """Change the rows in these blocks; return the seconds that it took, None if it was held up.

        Args:
            to: the block where the range continues.
            size: the number of blocks of which this batch is a stripe.
        """

        def batch() -> float:
            with self.fenced(part, size):
                self._prune(part)
                if self.is_paced and not blocks.stripe:  # before a row is locked: no slice waits for the disk
                    self._read(blocks.lower, blocks.upper, part.partition)
                started = time.monotonic()
                rows = sum(self._slices(part, blocks))
                seconds = time.monotonic() - started
                ranges.advance(self.connection, part, to=to, share=share(part, to), rows=rows, seconds=seconds)
            return time.monotonic() - started

        are_few = size <= FEW[self.row.order]
        took = self.unless_held_up(lambda: self.changes.carefully(batch, are_few=are_few))
        if took is not None:
            self.rest(part, self.last_slice)
        return took

    def _slices(self, part: BackfillRange, blocks: Blocks) -> Iterator[int]:
        """Change the rows in these blocks, in slices if others are at work; yield the number of rows of each slice.

        After the target time the last slice takes all blocks that are left, because the batch holds row locks.
        """
        is_paced, at = self.is_paced, blocks.lower
        until = time.monotonic() + self.target_now()
        while at < blocks.upper:
            started = time.monotonic()
            end = min(at + self.slice.now, blocks.upper) if is_paced and started < until else blocks.upper
            yield self.changes.of(Blocks(at, end, blocks.stripe), part.partition)
            self.last_slice = time.monotonic() - started
            if is_paced and started < until:
                self.slice.follow(end - at, self.last_slice, SLICE)
            if end < blocks.upper:
                time.sleep(GAP * self.last_slice)
            at = end

    def changed(self, part: BackfillRange, lower: int, upper: int) -> None:
        """Remember these changed blocks, and the blocks by which the table has grown, to prune them later.

        Takes ACCESS SHARE on the table for a moment; remembers nothing if it does not get it.
        """
        blocks_of = partial(ranges.blocks_of, self.connection, self.changes.work.model, part.partition)
        with locks.session_settings(self.connection, lock_timeout=locks.milliseconds(conf.LOCK_TIMEOUT)):
            size = self.unless_held_up(blocks_of)
        if size is None:
            return
        self._changed.append((part.partition, [(lower, upper), (self._blocks_before.get(part.partition, size), size)]))
        self._blocks_before[part.partition] = size

    def _prune(self, part: BackfillRange) -> None:
        """Read the blocks of older changes, so that PostgreSQL prunes them.

        The first reader of a block frees its dead rows and sets hint bits. That writes the whole block to the WAL
        unless it is there since the last checkpoint, so it is done soon, not by the verification at the end
        (https://www.postgresql.org/docs/current/storage-hot.html, runtime-config-wal).
        """
        while len(self._changed) > NOT_YET:
            partition, places = self._changed.popleft()
            if partition == part.partition:  # another partition may be gone
                for lower, upper in places:
                    self._read(lower, upper, partition)

    def _read(self, lower: int, upper: int, partition: str) -> None:
        for some in self.reading(lower, upper):
            statements.read(self.changes.work, some, partition)

    def reading(self, lower: int, upper: int) -> Iterator[Blocks]:
        """Yield these blocks in slices to read; pause between them if others are at work."""
        while lower < upper:
            started = time.monotonic()
            some = Blocks(lower, min(lower + self.some_to_read.now, upper))
            yield some
            seconds = time.monotonic() - started
            self.some_to_read.follow(some.upper - lower, seconds, READ if self.is_paced else self.target)
            if self.is_paced:
                time.sleep(GAP * seconds)
            lower = some.upper

    def by_keys(self, part: BackfillRange, keys: Sequence[Any], cursor: Any = None) -> Iterator[tuple[int, float]]:
        """Change the rows with these keys in batches; yield the rows and the seconds of each batch.

        A batch that is held up is retried at once in half the size; a single row that is held up is left alone.

        Args:
            cursor: where the range continues; None leaves that as it is.

        Raises:
            LeaseLost: if another worker has the range now.
        """
        at = 0
        while at < len(keys) and not self.stop():
            some = keys[at : at + self.some.now]
            started = time.monotonic()
            batch = partial(self._some, part, some, cursor)
            rows = self.unless_held_up(partial(self.changes.carefully, batch, are_few=len(some) <= FEW[KEYS]))
            seconds = time.monotonic() - started
            if rows is not None:
                self.some.follow(len(some), seconds, self.target_now())
            elif not ranges.renew(self.connection, part):
                raise LeaseLost
            elif len(some) > 1:
                self.some.now = len(some) // 2
                continue
            at += len(some)
            yield rows or 0, seconds
            self.rest(part, seconds)

    def _some(self, part: BackfillRange, keys: Sequence[Any], cursor: Any) -> int:
        """Change the rows that no other session has locked; return their number."""
        started = time.monotonic()
        with self.fenced(part, len(keys)):
            rows = self.changes.of_keys(statements.unlocked_keys(self.changes.work, keys))
            done = 0.0 if cursor is None else share(part, cursor)
            seconds = time.monotonic() - started
            ranges.advance(self.connection, part, to=cursor, share=done, rows=rows, seconds=seconds)
            return rows

    def next_keys(self, part: BackfillRange, at: Any, rows_in_a_range: Callable[[], float]) -> tuple[Any, int] | None:
        """Change the rows with the next keys after ``at``; return the last of these keys and the number of rows.

        Args:
            rows_in_a_range: an estimate, from which the share that is done follows.

        Returns:
            None if it was held up. The key is None at the end of the range.
        """
        started = time.monotonic()

        def batch() -> tuple[Any, int]:
            with self.fenced(part, self.size.now):
                end = statements.key_at(self.changes.work, at, part.upper, self.size.now)
                rows = self.changes.of(statements.in_keys(self.changes.work.model, at, end or part.upper))
                done = 1.0 if end is None else min(0.99, (part.rows_done + rows) / rows_in_a_range())
                seconds = time.monotonic() - started
                ranges.advance(self.connection, part, to=end, share=done, rows=rows, seconds=seconds)
            return end, rows

        done = self.unless_held_up(lambda: self.changes.carefully(batch, are_few=self.size.now <= FEW[KEYS]))
        seconds = time.monotonic() - started
        if done is None:
            self.size.divide(2)
        else:
            self.size.follow(done[1] if done[0] is None else self.size.now, seconds, self.target_now())
            self.rest(part, seconds)
        return done

    def finish(self, part: BackfillRange, action: Callable[[BackfillRange], object]) -> bool:
        """Call the action and finish the range in one transaction; return whether that got its locks."""

        def batch() -> bool:
            with self.fenced(part, 1):
                action(part)
                ranges.advance(self.connection, part, to=part.upper, share=1.0, rows=0, seconds=0.0)
            return True

        return self.unless_held_up(batch) or False

    def go_on_at(self, part: BackfillRange, block: int) -> None:
        """Continue the range at the block; the next sweep changes what others keep locked before it."""
        with self.fenced(part, 1):
            ranges.advance(self.connection, part, to=block, share=share(part, block), rows=0, seconds=0.0)

    def target_now(self) -> float:
        """Return the seconds that the next batch should take."""
        return min(self.target, AMONG_OTHERS) if self.is_paced else self.target

    def rest(self, part: BackfillRange, seconds: float) -> None:
        """Pause while there is a reason to, and renew the lease of the range.

        Args:
            seconds: how long the last batch or slice took.
        """
        self.is_resting = True
        self.throttle.hold_back(seconds, self.say, lambda: self.stop() or not ranges.renew(self.connection, part))
        self.is_resting = self.throttle.advice.wait  # a verification stops then, too

    def say(self, reason: str) -> None:
        """Record why the backfill is held back; an empty reason says that it is not."""
        if reason != self._said:
            running = Backfill.objects.using(self.alias).filter(pk=self.row.pk, status=Backfill.Status.RUNNING)
            running.exclude(throttle=reason).update(throttle=reason)
            self._said = reason

    def forget_what_was_said(self) -> None:
        """Record the next reason even if it is the same: another worker may have recorded another one."""
        self._said = None


def share(part: BackfillRange, block: int) -> float:
    """Return how much of the range is before the block."""
    return float((block - part.lower) / (part.upper - part.lower))
