"""Which settings does the engine have? Each is ``ZERO_DOWNTIME_`` and its name here, read when it is asked for."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

LONGEST = 86_400  # seconds
SECONDS = {"LOCK_TIMEOUT": 0.001, "PATIENCE": 0, "BLOCK_BUDGET": 0.001}
"""The settings that are seconds, and the least of each."""


class Settings:
    LOCK_TIMEOUT: float = 0.1
    """Seconds that a statement may wait for a lock, and so hold up whoever queues behind it."""

    PATIENCE: float = 300.0
    """Seconds to go on trying for a lock."""

    BLOCK_BUDGET: float = 1.0
    """Seconds that anybody may wait for a migration before its statement is canceled."""

    AUTO_ROLLBACK: bool = False
    """Whether migrate undoes what it applied when a step fails, unless --auto-rollback or --no-auto-rollback says."""

    KEEP_RUNS: int | None = None
    """Days that the ledger keeps its runs; None keeps them all."""

    BACKFILL_INLINE: int = 100_000
    """Rows, as the planner guesses, up to which a migration does a backfill itself, not leaving it to a worker."""

    BACKFILL_WORKERS: int = 2
    """How many workers of the queue go through one backfill at the same time, at least 1."""

    BACKFILL_IGNORE: Collection[str] = ()
    """Which of ``backfills.throttle.REASONS`` do not hold a backfill back."""

    BACKFILL_REPLICA_LAG: float | None = 64.0
    """Megabytes that a replica may be behind before backfills wait for it; None for any."""

    BACKFILL_WAL_RATE: float | None = None
    """Megabytes of WAL a second above which backfills wait; None for any."""

    BACKFILL_LOAD: str | Callable[[], Any] | None = None
    """A function of the project's own, or where it stands, that returns a reason for backfills to wait, or nothing."""

    DEFAULT_STAGE: str | None = None
    """The stage of the migrations that say none; None for the one that their operations imply."""

    POSTGRESQL_PROGRAMS: str | Path | None = None
    """The folder of pg_dump and pg_restore, and of the linter's server; None looks along the PATH."""

    SCRATCH_DATABASE: str | None = None
    """A server on which the linter tries migrations, in place of one of its own: an alias in DATABASES or the path of a
    function that returns such an entry."""

    LINT_AFTER: dict[str, str] = {}
    """For each app the name of its last migration that the linter leaves alone."""

    def __getattribute__(self, name: str) -> Any:
        value = getattr(settings, f"ZERO_DOWNTIME_{name}", super().__getattribute__(name))
        if name == "BACKFILL_WORKERS" and not (isinstance(value, int) and value >= 1):
            raise ImproperlyConfigured(
                f"ZERO_DOWNTIME_BACKFILL_WORKERS is {value!r}, so no worker of the queue could take up a backfill. "
                "Set it to a whole number from 1 on. Who wants no queue does not install procrastinate.contrib.django."
            )
        if name in SECONDS and not (type(value) in {int, float} and SECONDS[name] <= value <= LONGEST):
            raise ImproperlyConfigured(
                f"ZERO_DOWNTIME_{name} is {value!r}. Set it to a number of seconds from {SECONDS[name]:g} to {LONGEST}."
            )
        return value

    def refuse_odd_times(self) -> None:
        """Make sure, before anything is done, that the times by which a run keeps are some.

        Raises:
            ImproperlyConfigured: names the first that is none.
        """
        for name in SECONDS:
            getattr(self, name)


conf = Settings()
