"""Which rows of a batch cannot be changed, and why?

A batch runs without savepoints first. If a row may have made it fail, it runs again with savepoints, half by half,
until that row is found. The row is set aside: the backfill leaves it alone from then on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.db.models import QuerySet

from ..exceptions import BackfillFailed, summary
from ..models import Backfill, SetAside
from ..postgres import locks
from . import statements
from .ranges import LeaseLost
from .statements import Work

T = TypeVar("T")


class TooMany(Exception):
    """A row of the batch may have made it fail, and the batch is too large to search while all its rows are locked."""


MOST_SET_ASIDE = 1_000

# https://www.postgresql.org/docs/current/errcodes-appendix.html
OF_NO_ROW = {"08", "0A", "25", "3F", "40", "42", "53", "55", "57", "58", "XX"}  # classes of SQLSTATE


class Changes:
    """Changes the rows of a backfill's batches."""

    def __init__(self, row: Backfill, work: Work) -> None:
        self.row, self.work, self.alias = row, work, work.alias
        self.connection = connections[work.alias]
        self._careful = self._again = False

    def carefully(self, batch: Callable[[], T], *, are_few: bool) -> T:
        """Run a batch; if a row of it may have failed, run it again and set that row aside.

        Raises:
            TooMany: if the batch is too large for that.
        """
        try:
            return batch()
        except Exception as error:
            if not self._is_of_a_row(error):
                raise
            if not are_few:
                raise TooMany from error
        self._careful, before = True, self.work
        try:
            return batch()
        except BaseException:
            self.work = before  # the rollback undid the rows set aside
            raise
        finally:
            self._careful = False

    def of(self, here: Any, partition: str = "") -> int:
        """Change the rows there, set aside those that fail; return the number of changed rows."""
        try:
            with self._savepoint():
                return statements.change(self.work, here, partition)
        except Exception as error:
            if not self._careful or not self._is_of_a_row(error):
                raise
        return self.of_keys(statements.keys_of(self.work, here, partition))

    def of_keys(self, keys: Sequence[Any]) -> int:
        """Change the rows with these keys, set aside those that fail; return the number of changed rows."""
        if not keys:
            return 0
        try:
            with self._savepoint():
                statements.change_keys(self.work, keys)
                if self._again:
                    texts = [statements.as_text(self.work.model, key) for key in keys]
                    self._rows_set_aside(again=True).filter(key__in=texts).delete()
        except Exception as error:
            if not self._careful or not self._is_of_a_row(error):
                raise
            if len(keys) > 1:
                middle = len(keys) // 2
                return self.of_keys(keys[:middle]) + self.of_keys(keys[middle:])
            self._set_aside(keys[0], error)
            return 0
        return len(keys)

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Open a savepoint in the second run of a batch, and check deferred constraints at its end."""
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
        """Whether a row may have caused the error, so that the other rows can be changed without it."""
        if isinstance(error, BackfillFailed | LeaseLost | InterfaceError):
            return False
        if isinstance(error, DatabaseError):
            return not locks.is_lost(error) and (locks.sqlstate(error) or "00")[:2] not in OF_NO_ROW
        return self.work.declaration.has_process()

    def _set_aside(self, key: Any, error: Exception) -> None:
        """Leave the row alone from now on. Other workers do so from their next range on."""
        row = SetAside(backfill=self.row, key=statements.as_text(self.work.model, key), error=summary(error))
        rows = SetAside.objects.using(self.alias)
        rows.bulk_create(
            [row], update_conflicts=True, unique_fields=["backfill", "key"], update_fields=["error", "again"]
        )
        self.work = replace(self.work, set_aside=(*self.work.set_aside, key))
        if rows.filter(backfill=self.row, again=False).count() > MOST_SET_ASIDE:
            raise BackfillFailed(f"More than {MOST_SET_ASIDE} rows cannot be changed; the last {row}")

    def leave_alone_what_is_set_aside(self) -> None:
        """Leave alone from now on the rows that any worker has set aside.

        Raises:
            BackfillFailed: if a key of such a row does not fit the model.
        """
        self.work = replace(self.work, set_aside=tuple(self._keys_set_aside(again=False)))

    def to_try_again(self) -> list[Any]:
        """Return the keys of the rows that ``retry`` marked to be tried again, if they still exist."""
        keys = self._keys_set_aside(again=True)
        self._again = bool(keys)
        return list(self.work.to_do.filter(pk__in=keys).values_list("pk", flat=True)) if keys else []

    def given_up(self) -> int:
        """Return the number of rows that stay set aside; forget those that are gone or done by now."""
        self._rows_set_aside(again=True).delete()
        rows = self._rows_set_aside(again=False)
        keys = self._keys_set_aside(again=False)
        to_do = replace(self.work, set_aside=()).to_do.filter(pk__in=keys).values_list("pk", flat=True)
        rows.exclude(key__in=[statements.as_text(self.work.model, key) for key in to_do]).delete()
        return rows.count()

    def _rows_set_aside(self, *, again: bool) -> QuerySet[SetAside]:
        return SetAside.objects.using(self.alias).filter(backfill=self.row, again=again)

    def _keys_set_aside(self, *, again: bool) -> list[Any]:
        try:
            texts = self._rows_set_aside(again=again).values_list("key", flat=True)
            return [statements.from_text(self.work.model, text) for text in texts]
        except (ValidationError, ValueError) as error:
            reason = " ".join(getattr(error, "messages", [str(error)])).rstrip(".")
            label = self.work.model._meta.label
            raise BackfillFailed(f"{label} has another kind of key now than the rows set aside: {reason}.") from error
