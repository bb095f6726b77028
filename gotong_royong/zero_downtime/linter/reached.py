"""Which lines of a migration's code change rows and did not run, because no made-up row met their condition?

Such lines name a method of querysets, models and cursors that changes rows. If two lines have the same words, such as
the last batch after a loop, one of them has to run.
"""

import dis
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db.migrations import RunPython
from django.db.migrations.operations.base import Operation

from ..running.states import with_inner
from .facts import Direction

CHANGING = {"save", "delete", "update", "create", "bulk_create", "bulk_update", "execute", "executemany"}
CHANGING |= {"get_or_create", "update_or_create"}


class Reached:
    """The lines of an operation's code, and which of them have run."""

    def __init__(self, operation: Operation, direction: Direction) -> None:
        attribute = "code" if direction == Direction.UP else "reverse_code"
        functions = [getattr(one, attribute) for one in with_inner(operation) if isinstance(one, RunPython)]
        self._codes: dict[types.CodeType, str] = {}
        for function in functions:
            self._codes |= dict.fromkeys(_codes(function), getattr(function, "__name__", "it"))
        self._ran: set[tuple[types.CodeType, int]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the lines that run in the block."""
        before = sys.gettrace()
        if self._codes:
            sys.settrace(self._enter)
        try:
            yield
        finally:
            if self._codes:
                sys.settrace(before)

    def _enter(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code not in self._codes:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        self._ran.add((frame.f_code, frame.f_lasti))
        return self._step

    def missed(self) -> Iterator[str]:
        """Yield a sentence for each function that has lines which change rows and did not run."""
        changes = [(code, *change) for code in self._codes for change in _changes(code)]
        known = {words for code, places, _, words in changes if any((code, one) in self._ran for one in places)}
        missed: dict[str, set[int]] = {}
        for code, _, line, words in changes:
            if words not in known:
                missed.setdefault(self._codes[code], set()).add(line)
        for name, numbers in missed.items():
            where = f"line {', '.join(map(str, sorted(numbers)))}"
            yield (
                f"{name} changes rows in {where}, which did not run: no made-up row is as it wants it, so whom that "
                "keeps waiting, and whether it fails, was not seen."
            )


def _codes(function: Any, seen: set[Any] | None = None) -> Iterator[types.CodeType]:
    """Yield the code of a function, of those within it, and of those of its module that it names."""
    seen = set() if seen is None else seen
    if not isinstance(function, types.FunctionType) or function in seen:
        return
    seen.add(function)
    found = [function.__code__]
    for code in found:
        found += [one for one in code.co_consts if isinstance(one, types.CodeType)]
        yield code
        for name in code.co_names:
            other = function.__globals__.get(name)
            if getattr(other, "__module__", None) == function.__module__:
                yield from _codes(other, seen)


def _changes(code: types.CodeType) -> Iterator[tuple[range, int, tuple[str, ...]]]:
    """Yield each instruction that changes rows: its offsets, its line, and the names in that line."""
    words: dict[int, tuple[str, ...]] = {}
    found: list[tuple[range, int]] = []
    first = None
    for one in dis.get_instructions(code):
        line = (one.positions.lineno if one.positions else None) or 0
        first = one.offset if first is None else first
        if isinstance(one.argval, str):
            words[line] = (*words.get(line, ()), one.argval)
        if one.opname in {"LOAD_ATTR", "LOAD_METHOD"} and one.argval in CHANGING:
            found.append((range(first, one.offset + 1), line))
        if one.opname != "EXTENDED_ARG":  # it is a part of the next instruction
            first = None
    yield from ((places, line, words[line]) for places, line in found)
