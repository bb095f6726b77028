"""How does a worker change one batch of rows, and how many rows has the next one?

A batch, where its range goes on, and what it counts are one transaction. Its size follows the time that it took. What
got no lock or took too long changes nothing, and is the caller's to try again. While others are at work a batch goes on
in slices of a few blocks with pauses in between: whoever commits waits until all WAL that was written before is on the
disk, so that there should never be much of it.
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
from .throttle import LOOK_EVERY, Throttle

T = TypeVar("T")

LONGEST = 4  # times that a batch shall take, after which its statement is canceled
SMALLEST = 5.0  # seconds after which that of the smallest batch is
NOT_YET = 2  # times that blocks were changed, last, which are not yet tidied up
IN_QUEUE = 5.0  # seconds that a look waits for its table before it asks whether it is to stop
LEFT = 1_000  # rows that are done by their keys, as they were found, instead of in another sweep

# https://www.postgresql.org/docs/current/errcodes-appendix.html
NOT_NOW = {locks.LOCK_NOT_AVAILABLE, locks.DEADLOCK, locks.QUERY_CANCELED, "40001"}

# https://www.postgresql.org/docs/current/transaction-iso.html#XACT-REPEATABLE-READ
ONE_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class Batches:
    """The batches of one worker, which all lock rows FOR NO KEY UPDATE, and its range.

    Args:
        stop: whether to let go after the batch at hand.
        target: seconds that a batch shall take, which is how long others may wait for a row of it.
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
        """Whether there was a reason to go slower when it was looked last."""
        return bool(self.throttle.advice.reason)

    @property
    def size(self) -> Size:
        """How many blocks or rows the next batch has; ``some`` is for rows that are changed by their keys."""
        return self._sizes[self.row.order]

    def take_fewer(self) -> None:
        """Make the next batch smaller, for the session of the last one was ended.

        Raises:
            BackfillFailed: if there is nothing smaller.
        """
        if self.size.now == self.some.now == 1:
            raise BackfillFailed(
                f"Its process did not use the database for more than {ranges.LEASE:g} s over a single row, which stays "
                "locked meanwhile. Let it do there only what is quick."
            )
        self.size.divide(8)
        self.some.divide(8)

    @contextmanager
    def fenced(self, part: BackfillRange, size: int) -> Iterator[None]:
        """Open a batch's transaction, unless the range is no longer ours.

        Raises:
            LeaseLost: if it is not.
        """
        longest = SMALLEST if size == 1 else LONGEST * self.target
        with transaction.atomic(using=self.alias):
            if not ranges.is_still_ours(self.connection, part, longest, paced=self.is_paced):
                raise LeaseLost
            yield
        self.committed += 1

    def unless_held_up(self, batch: Callable[[], T]) -> T | None:
        """Do it; return None if it got no lock or took too long, for which ``held_up`` is PostgreSQL's code then.

        None as well if rows of it cannot be done, and there are too many to find them.
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
        """Say what the last batch that was held up waited for, and what is to be done."""
        if self.held_up == locks.QUERY_CANCELED:
            return (
                f"One of its last rows takes longer than {SMALLEST:g} s to change, after which that is canceled. See "
                "what its update, or a trigger of the table, does there."
            )
        return "Somebody keeps the table or its last rows locked. End that session."

    def by_blocks(self, part: BackfillRange, blocks: Blocks, *, to: int, size: int) -> float | None:
        """Change the rows in these blocks; return the seconds that it took, or None if it was held up.

        Args:
            to: the block where the range goes on.
            size: of how many blocks the batch is a part.
        """

        def batch() -> float:
            with self.fenced(part, size):
                self._tidy(part)
                if self.is_paced and not blocks.stripe:  # lest each slice waits for the disk, with rows locked
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
        """Change the rows in these blocks, some after the other if others are at work; yield how many of some.

        Should they take longer than a batch shall, all that are left come at once, for its rows are locked.
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
        """Remember that these blocks were changed, and those by which the table has grown meanwhile.

        Locks it (ACCESS SHARE) for a moment, or remembers nothing if somebody else does.
        """
        blocks_of = partial(ranges.blocks_of, self.connection, self.changes.work.model, part.partition)
        with locks.session_settings(self.connection, lock_timeout=locks.milliseconds(conf.LOCK_TIMEOUT)):
            size = self.unless_held_up(blocks_of)
        if size is None:
            return
        self._changed.append((part.partition, [(lower, upper), (self._blocks_before.get(part.partition, size), size)]))
        self._blocks_before[part.partition] = size

    def _tidy(self, part: BackfillRange) -> None:
        """Read the blocks that were changed, but for the last two times, whose rows other workers may still see.

        Who reads them first frees what was deleted and notes what was committed. That writes the whole block to the
        WAL, unless it has been there since the last checkpoint: so it is done soon, and not left to the look at the end
        (https://www.postgresql.org/docs/current/storage-hot.html, runtime-config-wal).
        """
        while len(self._changed) > NOT_YET:
            partition, places = self._changed.popleft()
            if partition == part.partition:  # another one may be gone
                for lower, upper in places:
                    self._read(lower, upper, partition)

    def _read(self, lower: int, upper: int, partition: str) -> None:
        for some in self._reading(lower, upper):
            statements.read(self.changes.work, some, partition)

    def _reading(self, lower: int, upper: int) -> Iterator[Blocks]:
        """Yield these blocks to be read, some after the other, with pauses in between if others are at work."""
        while lower < upper:
            started = time.monotonic()
            some = Blocks(lower, min(lower + self.some_to_read.now, upper))
            yield some
            seconds = time.monotonic() - started
            self.some_to_read.follow(some.upper - lower, seconds, READ if self.is_paced else self.target)
            if self.is_paced:
                time.sleep(GAP * seconds)
            lower = some.upper

    def left_in_slices(self, most: int) -> list[Any] | None:
        """Return the keys of rows that are left to do, as many as that, in slices, with pauses if others are at work.

        They are those of one moment, as those of one statement would be: all is read in one snapshot. Locks none of
        them (ACCESS SHARE on the table until the end).

        Returns:
            None if it is to stop, is paused or canceled, or if somebody waits for the table.
        """
        found = list[Any]()
        with self._one_snapshot(), self._beside_it() as is_running:
            for table in ranges.parts_of(self.connection, self.changes.work.model):
                for some in self._reading(0, table.blocks):
                    self.throttle.look()
                    if self.stop() or self.throttle.is_waited_for or not is_running():
                        return None
                    found += statements.keys_of(self.changes.work, some, table.name, lock=False)
                    if len(found) >= most:
                        return found[:most]
        return found

    @contextmanager
    def _one_snapshot(self) -> Iterator[None]:
        """Read in one snapshot, taken once the table is ours to read: to an older one, what was rewritten is empty.

        https://www.postgresql.org/docs/current/mvcc-caveats.html
        """
        settings = {
            "lock_timeout": locks.milliseconds(IN_QUEUE),
            "idle_in_transaction_session_timeout": locks.milliseconds(ranges.LEASE),
            "backend_flush_after": ranges.FLUSH_AFTER,
            **locks.no_transaction_timeout(self.connection),
        }
        table = self.connection.ops.quote_name(self.changes.work.model._meta.db_table)
        with locks.session_settings(self.connection, **settings), transaction.atomic(using=self.alias):
            with self.connection.cursor() as cursor:
                cursor.execute(ONE_SNAPSHOT)
                cursor.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
            yield

    @contextmanager
    def _beside_it(self) -> Iterator[Callable[[], bool]]:
        """Yield what says whether the backfill is running, each second: no snapshot knows what became of it since."""
        other = self.connection.copy()
        asked, is_running = time.monotonic(), True

        def ask() -> bool:
            nonlocal asked, is_running
            if time.monotonic() - asked > LOOK_EVERY:
                asked, is_running = time.monotonic(), ranges.is_running(other, self.row)
            return is_running

        try:
            yield ask
        finally:
            other.close()

    def by_keys(self, part: BackfillRange, keys: Sequence[Any], cursor: Any = None) -> Iterator[tuple[int, float]]:
        """Change the rows with these keys, some after the other; yield how many of some, and the seconds it took.

        What is held up is tried again in half the size, at once, and left alone as a single row.

        Args:
            cursor: where the range goes on, if that is to be written down.

        Raises:
            LeaseLost: if the range is no longer ours.
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
        """Change those of the rows that nobody else has locked; return how many were."""
        started = time.monotonic()
        with self.fenced(part, len(keys)):
            rows = self.changes.of_keys(statements.unlocked_keys(self.changes.work, keys))
            done = 0.0 if cursor is None else share(part, cursor)
            seconds = time.monotonic() - started
            ranges.advance(self.connection, part, to=cursor, share=done, rows=rows, seconds=seconds)
            return rows

    def next_keys(self, part: BackfillRange, at: Any, rows_in_a_range: Callable[[], float]) -> tuple[Any, int] | None:
        """Change the rows with the next keys after ``at``; return the last of these keys and how many rows.

        Args:
            rows_in_a_range: from which, and what it counted before, follows how much of the range is done.

        Returns:
            None if it was held up; the key is None at the end of the range.
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
        """End a range with what is to be done then, in one transaction; return whether that got its locks."""

        def batch() -> bool:
            with self.fenced(part, 1):
                action(part)
                ranges.advance(self.connection, part, to=part.upper, share=1.0, rows=0, seconds=0.0)
            return True

        return self.unless_held_up(batch) or False

    def go_on_at(self, part: BackfillRange, block: int) -> None:
        """Leave what is before the block and not done, since somebody keeps it locked, to the next sweep."""
        with self.fenced(part, 1):
            ranges.advance(self.connection, part, to=block, share=share(part, block), rows=0, seconds=0.0)

    def target_now(self) -> float:
        """Return the seconds that the next batch shall take."""
        return min(self.target, AMONG_OTHERS) if self.is_paced else self.target

    def rest(self, part: BackfillRange, seconds: float) -> None:
        """Pause for as long as there is a reason to, and keep the range meanwhile.

        Args:
            seconds: how long the last batch or slice took.
        """
        self.is_resting = True
        self.throttle.hold_back(seconds, self.say, lambda: self.stop() or not ranges.renew(self.connection, part))
        self.is_resting = self.throttle.advice.wait  # so that who was told to stop meanwhile does

    def say(self, reason: str) -> None:
        """Show why the backfill is held back, or that it is not."""
        if reason != self._said:
            running = Backfill.objects.using(self.alias).filter(pk=self.row.pk, status=Backfill.Status.RUNNING)
            running.exclude(throttle=reason).update(throttle=reason)
            self._said = reason

    def forget_what_was_said(self) -> None:
        """Say the reason again, for others may have said another one meanwhile."""
        self._said = None


def share(part: BackfillRange, block: int) -> float:
    """Return how much of the range is before the block."""
    return float((block - part.lower) / (part.upper - part.lower))
