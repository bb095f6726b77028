"""Which rows of a batch cannot be changed, and why?

A batch is done plainly. If a row may be what made it fail, it is done again with savepoints, half by half, until that
row is found; it is set aside, and left alone from then on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from gotong_royong.zero_downtime import locks
from gotong_royong.zero_downtime.backfills import statements
from gotong_royong.zero_downtime.backfills.ranges import LetGo
from gotong_royong.zero_downtime.backfills.statements import Work
from gotong_royong.zero_downtime.exceptions import BackfillFailed, summary
from gotong_royong.zero_downtime.models import Backfill, SetAside

T = TypeVar("T")

MOST_SET_ASIDE = 1_000

# https://www.postgresql.org/docs/current/errcodes-appendix.html
OF_NO_ROW = {"08", "0A", "25", "3F", "40", "42", "53", "55", "57", "58", "XX"}  # classes


class Changes:
    """Changes the rows of a backfill's batches."""

    def __init__(self, row: Backfill, work: Work) -> None:
        self.row, self.work, self.alias = row, work, work.alias
        self.connection = connections[work.alias]
        self._careful = self._again = False

    def carefully(self, batch: Callable[[], T]) -> T:
        """Do a batch; where a row of it may be what failed, do it again and set that row aside."""
        try:
            return batch()
        except Exception as error:
            if not self._is_of_a_row(error):
                raise
        self._careful = True
        try:
            return batch()
        finally:
            self._careful = False

    def of(self, here: Any, partition: str = "") -> int:
        """Change the rows there; set aside those of them that cannot be."""
        try:
            with self._savepoint():
                return statements.change(self.work, here, partition)
        except Exception as error:
            if not self._careful or not self._is_of_a_row(error):
                raise
        keys = statements.keys_of(self.work, here, partition)
        self.of_keys(keys)
        return len(keys)

    def of_keys(self, keys: Sequence[Any]) -> None:
        """Change the rows with these keys, all at once or else half by half; set aside those that cannot be."""
        if not keys:
            return
        try:
            with self._savepoint():
                statements.change_keys(self.work, keys)
                if self._again:
                    self.row.set_aside.filter(key__in=[statements.as_text(key) for key in keys]).delete()
        except Exception as error:
            if not self._careful or not self._is_of_a_row(error):
                raise
            if len(keys) == 1:
                self._set_aside(keys[0], error)
            else:
                self.of_keys(keys[: len(keys) // 2])
                self.of_keys(keys[len(keys) // 2 :])

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Undo what failed, if we are careful; check now what otherwise is checked at the end of the transaction."""
        if not self._careful:
            yield
            return
        with transaction.atomic(using=self.alias):
            yield
            with self.connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        with self.connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL DEFERRED")

    def _is_of_a_row(self, error: Exception) -> bool:
        """Whether a row may be what makes the error, so that others can be done without it."""
        if isinstance(error, BackfillFailed | LetGo | InterfaceError):
            return False
        if isinstance(error, DatabaseError):
            return not is_lost(error) and (locks.sqlstate(error) or "00")[:2] not in OF_NO_ROW
        return self.work.declaration.has_process()

    def _set_aside(self, key: Any, error: Exception) -> None:
        row = SetAside(backfill=self.row, key=statements.as_text(key), error=summary(error))
        SetAside.objects.using(self.alias).bulk_create(
            [row], update_conflicts=True, unique_fields=["backfill", "key"], update_fields=["error", "again"]
        )
        if self.row.set_aside.filter(again=False).count() > MOST_SET_ASIDE:
            raise BackfillFailed(f"More than {MOST_SET_ASIDE} rows cannot be changed; the last {row}")

    def leave_alone_what_is_set_aside(self) -> None:
        self.work = replace(self.work, set_aside=tuple(self._keys_set_aside(again=False)))

    def to_try_again(self) -> list[Any]:
        """Return the keys of rows that were set aside and are to be tried again, if they are still there."""
        keys = self._keys_set_aside(again=True)
        self._again = bool(keys)
        return list(self.work.to_do.filter(pk__in=keys).values_list("pk", flat=True)) if keys else []

    def given_up(self) -> int:
        """Return how many rows stay set aside once all are done; forget those that are not there any more."""
        self.row.set_aside.filter(again=True).delete()
        return self.row.set_aside.count()

    def _keys_set_aside(self, *, again: bool) -> list[Any]:
        keys = self.row.set_aside.filter(again=again).values_list("key", flat=True)
        return [statements.from_text(self.work.model, key) for key in keys]


def is_lost(error: BaseException) -> bool:
    """Whether the error ended the session: the server went down, somebody ended it, it idled in a transaction."""
    state = locks.sqlstate(error)
    if state is None:
        return isinstance(error, OperationalError | InterfaceError)
    return state.startswith(("08", "57P", locks.IDLE_IN_TRANSACTION))
