"""Which settings does the engine have? Each is ``ZERO_DOWNTIME_`` and its name here, read at each use."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

LONGEST = 86_400  # seconds
OLDEST = 36_500  # days


def _number(least: float, most: float = math.inf, *, is_whole: bool = False) -> Callable[[Any], bool]:
    types = {int} if is_whole else {int, float}
    return lambda value: type(value) in types and least <= value <= most


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_any(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "LOCK_TIMEOUT": (_number(0.001, LONGEST), f"a number of seconds from 0.001 to {LONGEST}"),
    "PATIENCE": (_number(0, LONGEST), f"a number of seconds from 0 to {LONGEST}"),
    "BLOCK_BUDGET": (_number(0.001, LONGEST), f"a number of seconds from 0.001 to {LONGEST}"),
    "AUTO_ROLLBACK": (_is_any(bool), "True or False"),
    "KEEP_RUNS": (
        _or_none(_number(1, OLDEST, is_whole=True)),
        f"a whole number of days from 1 to {OLDEST}, or to None to keep all runs",
    ),
    "BACKFILL_INLINE": (_number(0, is_whole=True), "a whole number of rows from 0 on"),
    "BACKFILL_WORKERS": (
        _number(1, is_whole=True),
        "a whole number from 1 on. To run backfills without a queue, remove procrastinate.contrib.django from "
        "INSTALLED_APPS",
    ),
    "BACKFILL_IGNORE": (_is_any(list, tuple, set, frozenset), "a list of reasons"),
    "BACKFILL_REPLICA_LAG": (_or_none(_number(0)), "a number of megabytes from 0 on, or to None"),
    "BACKFILL_WAL_RATE": (_or_none(_number(0)), "a number of megabytes a second from 0 on, or to None"),
    "BACKFILL_LOAD": (
        lambda value: value is None or isinstance(value, str) or callable(value),
        "a function, its dotted path, or None",
    ),
    "POSTGRESQL_PROGRAMS": (_or_none(_is_any(str, Path)), "the path of a folder, or to None"),
    "SCRATCH_DATABASE": (_or_none(_is_any(str)), "an alias in DATABASES, the dotted path of a function, or None"),
    "LINT_AFTER": (_is_any(dict), "a dictionary of apps and the names of migrations"),
}
"""For each setting a test of its value, and that test in words. ``stages`` checks DEFAULT_STAGE."""


class Settings:
    LOCK_TIMEOUT: float = 0.1
    """Seconds that a statement may wait for a lock; other sessions queue behind it meanwhile."""

    PATIENCE: float = 300.0
    """Seconds after which the engine stops trying for a lock."""

    BLOCK_BUDGET: float = 1.0
    """Seconds that a session may wait for a migration before the engine cancels its statement."""

    AUTO_ROLLBACK: bool = False
    """Whether migrate undoes what it applied when a step fails; --auto-rollback and --no-auto-rollback override it."""

    KEEP_RUNS: int | None = None
    """Days that the ledger keeps its runs; None keeps them all."""

    BACKFILL_INLINE: int = 100_000
    """Rows, as the planner estimates, up to which a migration does a backfill itself."""

    BACKFILL_WORKERS: int = 2
    """How many workers of the queue share one backfill, at least 1."""

    BACKFILL_IGNORE: Collection[str] = ()
    """Which of ``backfills.throttle.REASONS`` do not hold a backfill back."""

    BACKFILL_REPLICA_LAG: float | None = 64.0
    """Megabytes that a replica may be behind before backfills wait for it; None for any."""

    BACKFILL_WAL_RATE: float | None = None
    """Megabytes of WAL a second above which backfills wait; None for any."""

    BACKFILL_LOAD: str | Callable[[], Any] | None = None
    """A function, or its dotted path, that returns a reason for backfills to wait, or nothing."""

    DEFAULT_STAGE: str | None = None
    """The stage of a migration without a ``stage``; None derives it from the operations."""

    POSTGRESQL_PROGRAMS: str | Path | None = None
    """The folder of pg_dump and pg_restore, and of the linter's server; None looks along the PATH."""

    SCRATCH_DATABASE: str | None = None
    """The server for the linter's scratch databases: an alias in DATABASES, or the dotted path of a function that
    returns such an entry; None starts a server."""

    LINT_AFTER: dict[str, str] = {}
    """For each app the name of the last migration that the linter skips."""

    def __getattribute__(self, name: str) -> Any:
        value = getattr(settings, f"ZERO_DOWNTIME_{name}", super().__getattribute__(name))
        is_right, wanted = RANGES.get(name, (bool, ""))
        if wanted and not is_right(value):
            raise ImproperlyConfigured(f"ZERO_DOWNTIME_{name} is {value!r}. Set it to {wanted}.")
        return value

    def refuse_odd(self) -> None:
        """Check every setting.

        Raises:
            ImproperlyConfigured: names the first wrong one.
        """
        for name in RANGES:
            getattr(self, name)


conf = Settings()
