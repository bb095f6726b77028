"""What did each operation of a step do to the database?

The journal writes on the ledger's session, before and after each effect: the operation began, a statement was executed,
or skipped because its object exists already, the operation ended.

An atomic migration is applied as a whole or not at all, so its journal has only what was skipped, written before the
commit.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from django.db.migrations.operations.base import Operation

from .statements import Object, drops


class Kind(StrEnum):
    """What an entry says of its operation or statement."""

    BEGAN = "began"
    EXECUTED = "executed"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNDONE = "undone"
    ENDED = "ended"


ALONG = "dependent"
"""The kind of an object that CASCADE dropped; its name is PostgreSQL's description."""


class Entry(NamedTuple):
    """A line of the journal: ``what`` is the statement, the reason of a skip, or the digest of the operation."""

    operation: int
    kind: Kind
    what: str = ""
    objects: tuple[Object, ...] = ()


@dataclass
class Told:
    """The journal of one operation of a migration, since the migration was last taken back."""

    digest: str = ""
    run: int = 0
    """The run that did it, or its last part; 0 if unknown."""
    ended: bool = False
    statements: int = 0
    """How many were executed."""
    executed: set[Object] = field(default_factory=set)
    """The objects that the statements made, changed or dropped."""
    dropped: set[Object] = field(default_factory=set)
    """Those of them that the statements dropped."""
    skipped: set[Object] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    """Why statements were skipped."""
    texts: set[str] = field(default_factory=set)
    """The statements that were executed."""
    failures: int = 0
    """How many statements had no effect."""
    earlier: "Told | None" = None
    """The interrupted tries before the last one."""

    @property
    def did_nothing(self) -> bool:
        """Whether the operation surely executed no statement."""
        return (self.run != 0 or bool(self.reasons)) and not self.statements

    @property
    def was_refused(self) -> bool:
        """Whether it did not end, because all its statements failed."""
        return not self.ended and not self.statements and self.failures > 0

    def add(self, entry: Entry, run: int) -> None:
        """Add an entry.

        A skipped object that an earlier, interrupted try made did not exist before the migration, so it does not count
        as skipped.
        """
        if entry.kind == Kind.BEGAN:
            if self.run:
                self.earlier = Told(executed=set(self.executed), dropped=set(self.dropped), texts=set(self.texts))
            self.digest, self.ended, self.run = entry.what, False, run
        elif entry.kind == Kind.EXECUTED:
            self.statements += 1
            self.texts.add(entry.what)
            self.executed.update(entry.objects)
            if drops(entry.what):
                self.dropped.update(entry.objects)
        elif entry.kind == Kind.SKIPPED:
            self.skipped.update(object for object in entry.objects if object not in self.executed)
            if not self.executed.issuperset(entry.objects or {None}):
                self.reasons.append(entry.what)
        elif entry.kind == Kind.FAILED:
            earlier = self.earlier or Told()
            self.statements -= 1
            self.failures += 1
            self.texts -= {entry.what} - earlier.texts
            self.executed -= set(entry.objects) - earlier.executed
            self.dropped -= set(entry.objects) - earlier.dropped
        else:
            self.ended = True


class Past(dict[int, Told]):
    """The journal of a migration, by the numbers of its operations, since it was last taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        """Whether the migration is applied."""
        self.taken_back: set[int] = set()
        """The operations that an unfinished rollback has taken back."""

    def add(self, entry: Entry, run: int) -> None:
        """Add an entry of a step up."""
        self.taken_back.discard(entry.operation)
        told = self.setdefault(entry.operation, Told())
        if entry.kind == Kind.UNDONE:
            if not told.earlier:
                del self[entry.operation]
        else:
            told.add(entry, run)

    def rest(self) -> "Past":
        """Return what a finished rollback left."""
        rest = Past()
        rest.update(self)
        return rest

    def of(self, number: int) -> Told | None:
        """Return the journal of an operation; None if there is nothing to take back."""
        if number in self.taken_back:
            return None
        return self.get(number, Told(ended=True) if self.complete else None)


class Journal:
    """Writes what the operations of a step do.

    Args:
        write: writes entries into the ledger.
        run: the number of the run.
        at_once: whether effects stay when the step fails; then each entry is written before its effect.
        past: what earlier runs did of the migration and did not take back.
    """

    def __init__(
        self, write: Callable[[list[Entry]], object], run: int, *, at_once: bool, past: Past | None = None
    ) -> None:
        self.write, self.run, self.at_once = write, run, at_once
        self._earlier = past or Past()
        self.told = deepcopy(self._earlier)
        self.operation: Operation | None = None
        self.number = 0
        self._waiting: list[Entry] = []
        self._unsettled: list[int] = []
        self._code: set[int] = set()
        self.is_up = True

    def new_try(self) -> None:
        """Forget what a rolled back transaction did."""
        self._waiting, self._unsettled = [], []
        if not self.at_once:
            self.told = deepcopy(self._earlier)

    @property
    def lasting(self) -> Past:
        """The journal of what stays if the transaction is rolled back."""
        return self.told if self.at_once else self._earlier

    def begin(self, number: int, operation: Operation) -> None:
        """Note that the operation begins. If it is pure SQL, that is written with its first statement."""
        self.number, self.operation = number, operation
        self._say(Kind.BEGAN, digest(operation) if self.at_once else "")
        if not operation.reduces_to_sql:
            self._code.add(number)
            self._flush()

    def executing(self, sql: str, objects: tuple[Object, ...]) -> None:
        """Note that a statement is executed now."""
        self._say(Kind.EXECUTED, sql, objects)
        self._flush()

    def failed(self, sql: str, objects: tuple[Object, ...]) -> None:
        """Note that the statement had no effect on these objects."""
        self._say(Kind.FAILED, sql, objects)
        self._flush()

    def skipped(self, reason: str, objects: tuple[Object, ...] = ()) -> None:
        """Note that a statement is not executed, because these objects exist or are gone already."""
        self._say(Kind.SKIPPED, reason, objects)

    def undone(self) -> None:
        """Note that the operation failed and its own transaction was rolled back."""
        self._say(Kind.UNDONE)
        self._flush()

    def end(self, *, settled: bool = True) -> None:
        """Note that the operation ended; if it is not ``settled``, the next settled operation notes that for both."""
        self._unsettled.append(self.number)
        if settled:
            for number in self._unsettled:
                self._say(Kind.ENDED, number=number)
            self._unsettled = []
            self._flush()

    @property
    def is_repeated(self) -> bool:
        """Whether an earlier try of the operation was interrupted."""
        return self.number in self.told and self.told[self.number].earlier is not None

    def may_be_done(self, sql: str) -> bool:
        """Whether an interrupted try may have executed this statement of the operation."""
        told = self.told.get(self.number)
        return bool(told and told.earlier and sql in told.earlier.texts)

    def has_ended(self, number: int) -> bool:
        return number in self.told and self.told[number].ended

    def before_commit(self) -> None:
        """Write what the commit of a transaction does not tell: skips, CASCADE's drops, operations that did nothing."""
        telling = {number for number, told in self.told.items() if told.reasons or told.did_nothing} - self._code
        along = {number for number, told in self.told.items() if any(one.kind == ALONG for one in told.dropped)}
        telling |= along if self.is_up else set()
        if entries := [entry for entry in self._waiting if entry.operation in telling]:
            self.write(entries)
        self._waiting = []

    def _flush(self) -> None:
        if self.at_once and self._waiting:
            self.write(self._waiting)
            self._waiting = []

    def _say(self, kind: Kind, what: str = "", objects: tuple[Object, ...] = (), number: int | None = None) -> None:
        entry = Entry(number or self.number, kind, what, objects)
        self._waiting.append(entry)
        self.told.add(entry, self.run)


def digest(operation: Operation) -> str:
    """Return a hash of what the operation does, its Python's source included."""
    return hashlib.sha256("".join(_texts(operation)).encode()).hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from (",", *_texts(each))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (f",{key}:", *_texts(each))
    elif inspect.isroutine(value):
        yield value.__qualname__
        if value.__name__ != "<lambda>":  # its source is the whole line
            with suppress(OSError, TypeError):
                yield inspect.getsource(value)
    elif hasattr(value, "deconstruct"):
        yield from (type(value).__qualname__, *_texts(value.deconstruct()))
    else:
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(value))
