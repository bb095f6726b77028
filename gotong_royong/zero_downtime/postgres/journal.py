"""What did each operation of a step do to the database?

It is written down, not inferred: that an operation began, each statement that was executed or left out because its
object was there and the same, and that the operation ended; on the ledger's session, before and after the effect.

A migration that is one transaction is there as a whole or not at all, so of that only what was left out is written,
before its commit.
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
    BEGAN = "began"
    EXECUTED = "executed"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNDONE = "undone"
    ENDED = "ended"


ALONG = "dependent"
"""The kind of an object that went along with what was dropped; its name is PostgreSQL's description."""


class Entry(NamedTuple):
    operation: int
    kind: Kind
    what: str = ""
    objects: tuple[Object, ...] = ()


@dataclass
class Told:
    """What the journal tells of one operation of a migration, since that was taken back last."""

    digest: str = ""
    run: int = 0
    """The run that did it, or the last part of it; 0 if that is not known."""
    ended: bool = False
    statements: int = 0
    """How many were executed."""
    executed: set[Object] = field(default_factory=set)
    dropped: set[Object] = field(default_factory=set)
    """Those of the executed that are dropped."""
    skipped: set[Object] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    """Why statements were left out."""
    texts: set[str] = field(default_factory=set)
    """The statements that were executed."""
    failures: int = 0
    """How many statements had no effect."""
    earlier: "Told | None" = None
    """What is told of the tries before the last one, which were interrupted."""

    @property
    def did_nothing(self) -> bool:
        """Whether it is known that the operation has executed no statement."""
        return (self.run != 0 or bool(self.reasons)) and not self.statements

    @property
    def was_refused(self) -> bool:
        """Whether it came to no end, because all its statements failed."""
        return not self.ended and not self.statements and self.failures > 0

    def add(self, entry: Entry, run: int) -> None:
        """Add what an entry tells.

        What an earlier, interrupted try has executed is there because of that try: it was not there before.
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
    """What is told of the operations of a migration, by their numbers, since it was taken back last."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False
        """Whether the migration was applied to its end."""
        self.taken_back: set[int] = set()
        """The operations that a way back has done with, though it did not come to its end."""

    def add(self, entry: Entry, run: int) -> None:
        """Add what an entry of a step upwards tells."""
        self.taken_back.discard(entry.operation)
        told = self.setdefault(entry.operation, Told())
        if entry.kind == Kind.UNDONE:
            if not told.earlier:
                del self[entry.operation]
        else:
            told.add(entry, run)

    def rest(self) -> "Past":
        """Return what a way back that came to its end has left."""
        rest = Past()
        rest.update(self)
        return rest

    def of(self, number: int) -> Told | None:
        """Return what is told of an operation; None if there is nothing to take back."""
        if number in self.taken_back:
            return None
        return self.get(number, Told(ended=True) if self.complete else None)


class Journal:
    """Writes down what the operations of a step do.

    Args:
        write: puts entries into the ledger.
        run: the number of the run.
        at_once: whether each effect stays whatever comes after it, so that it must be written down before it happens.
        past: what earlier runs have done of the migration and not taken back.
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
        """Forget what a transaction that was rolled back has done."""
        self._waiting, self._unsettled = [], []
        if not self.at_once:
            self.told = deepcopy(self._earlier)

    @property
    def lasting(self) -> Past:
        """What is told of that which is there whatever becomes of the transaction."""
        return self.told if self.at_once else self._earlier

    def begin(self, number: int, operation: Operation) -> None:
        """Say that the operation begins; it is written with its first statement, unless it may do without any."""
        self.number, self.operation = number, operation
        self._say(Kind.BEGAN, digest(operation) if self.at_once else "")
        if not operation.reduces_to_sql:
            self._code.add(number)
            self._flush()

    def executing(self, sql: str, objects: tuple[Object, ...]) -> None:
        self._say(Kind.EXECUTED, sql, objects)
        self._flush()

    def failed(self, sql: str, objects: tuple[Object, ...]) -> None:
        """Say that what was being executed has had no effect on these objects."""
        self._say(Kind.FAILED, sql, objects)
        self._flush()

    def skipped(self, reason: str, objects: tuple[Object, ...] = ()) -> None:
        self._say(Kind.SKIPPED, reason, objects)

    def undone(self) -> None:
        """Say that the operation failed, and the transaction that it has for itself was rolled back."""
        self._say(Kind.UNDONE)
        self._flush()

    def end(self, *, settled: bool = True) -> None:
        """Say that the operation has ended; with the next one that does, if it is not settled what it left."""
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
        """Whether an earlier try was interrupted while or after it executed this statement of the operation."""
        told = self.told.get(self.number)
        return bool(told and told.earlier and sql in told.earlier.texts)

    def has_ended(self, number: int) -> bool:
        return number in self.told and self.told[number].ended

    def before_commit(self) -> None:
        """Write of a transaction what nothing else tells: what was left out or went along, and who did nothing."""
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
    """Return a text that changes when what the operation does is edited."""
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
        if value.__name__ != "<lambda>":  # of which only the whole line is known
            with suppress(OSError, TypeError):
                yield inspect.getsource(value)
    elif hasattr(value, "deconstruct"):
        yield from (type(value).__qualname__, *_texts(value.deconstruct()))
    else:
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(value))
