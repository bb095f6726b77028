"""How is everything in the demo drawn? From a seeded generator, and between two fixed days, so never from the clock.

Of Python's generator only `random` and `getrandbits` are used: the others may change between versions.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from random import Random
from typing import TypeVar

T = TypeVar("T")

DAY = 24 * 3_600
FIRST_DAY = int(datetime(2023, 2, 1, tzinfo=UTC).timestamp())
LAST_SIGNUP = int(datetime(2025, 8, 1, tzinfo=UTC).timestamp())
LAST_DAY = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp())
EVER = LAST_DAY - FIRST_DAY

VERSION_4 = 4 << 76 | 2 << 62
NOT_RANDOM = 15 << 76 | 3 << 62


class Dice(Random):
    """Moments are seconds since 1970, because these are cheap to compute with; :func:`at` writes them."""

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.random() * len(choices))]

    def some(self, ten: Sequence[T], least: int, most: int) -> list[T]:
        """Return ``least`` to ``most`` different ones of ten."""
        first, count = int(self.random() * 10), least + int(self.random() * (most - least + 1))
        return [ten[(first + 3 * step) % 10] for step in range(count)]

    def uuid(self) -> str:
        """Return a UUID of version 4; Python's own class, asked half a million times, takes half a second longer."""
        digits = f"{self.getrandbits(128) & ~NOT_RANDOM | VERSION_4:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    def after(self, moment: int, longest: int = EVER) -> int:
        """Return a later moment, ``longest`` seconds away at most; on the last day, a minute at most."""
        return moment + 1 + int(self.random() * min(longest, max(LAST_DAY - moment, 60)))

    def between(self, start: int, end: int) -> int:
        return start + int(self.random() * (end - start))


@cache
def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).strftime("%Y-%m-%d ")


@cache
def _time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%H:%M:%S+00")


def at(moment: int) -> str:
    """Write ``moment`` for PostgreSQL. This is called millions of times, so both halves are looked up."""
    day, second = divmod(moment, DAY)
    return _date(day) + _time(second)
