"""Should a backfill go slower, and why? The database says so; a worker asks between two batches.

What makes it wait: sessions that wait for a backfill, a replica that lags, too much WAL, a vacuum against wraparound on
its table, a function of the project's own. What makes it pause after each slice of a batch: others at work in the same
database, an autovacuum on its table. Each has a name in ``REASONS``, by which it can be switched off.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.utils.module_loading import import_string

from ..conf import conf
from ..exceptions import counted, summary
from .ranges import LEAVES

BACKFILL = "backfill"
OURS = [BACKFILL, "migrate", "migrate: ledger", "migrate: watchdog", "migrate: backstop"]
"""The names of our sessions, by which only the pace is judged: anybody may take one."""
LOOK_EVERY = 1.0  # seconds
PAUSE = 0.4  # of the time of a batch, after it
WAIT = 0.5  # seconds until it is looked again whether the reason to wait has gone
RECENTLY = "5 seconds"  # in which others must have done nothing, lest we pause for them
# The last statements of sessions that every few seconds look for tasks, or how far backfills are, which is no work.
LOOKS = [r"%procrastinate\_%", r"%zero\_downtime\_%"]
REASONS = ("waiting", "replica_lag", "wal_rate", "wraparound", "load", "autovacuum", "others")

# https://www.postgresql.org/docs/current/progress-reporting.html
AUTOVACUUMS = f"""
    pg_stat_activity JOIN (
        SELECT pid, relid, false AS analyzes FROM pg_stat_progress_vacuum
        UNION ALL SELECT pid, relid, true FROM pg_stat_progress_analyze
    ) AS progress USING (pid)
    WHERE backend_type = 'autovacuum worker' AND datname = current_database()
          AND relid IN (SELECT oid FROM ({LEAVES}) AS leaves)
"""  # noqa: S608

# As long as an ANALYZE lasts no space is used again that a pass has freed, and autovacuum's lasts seconds where another
# takes a moment, for it rests in between. Autovacuum makes up for it within a minute. Who may not cancel it lets it be
# (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL).
CANCEL_ANALYZE = f"""
    SELECT pg_cancel_backend(pid) FROM {AUTOVACUUMS} AND analyzes AND (
        current_setting('is_superuser')::bool OR pg_has_role(to_regrole('pg_signal_autovacuum_worker'), 'USAGE')
    )
"""  # noqa: S608

# Sessions of other roles have no state for who is no member of pg_read_all_stats, so that they may be at work.
# https://www.postgresql.org/docs/current/monitoring-stats.html
LOAD = f"""
    SELECT (SELECT count(*) FROM pg_stat_activity waiting WHERE wait_event_type = 'Lock' AND application_name <> %(us)s
            AND datname = current_database() AND EXISTS (
                SELECT FROM pg_stat_activity
                WHERE pid = ANY(pg_blocking_pids(waiting.pid)) AND application_name = %(us)s
            )),
           (SELECT count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND datname = current_database()
                  AND pid <> pg_backend_pid() AND application_name <> ALL(%(ours)s) AND query NOT LIKE ALL(%(looks)s)
                  AND (state IS NULL OR state = 'active' OR state_change > clock_timestamp() - %(recently)s::interval)),
           (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) / 1048576 FROM pg_stat_replication
            WHERE state IN ('streaming', 'catchup')),
           pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') / 1048576,
           EXISTS (SELECT FROM pg_stat_activity
                   WHERE wait_event_type = 'Lock' AND pg_backend_pid() = ANY(pg_blocking_pids(pid))),
           (SELECT max(query) FROM {AUTOVACUUMS})
"""  # noqa: S608


class Facts(NamedTuple):
    """What the database says; sizes in megabytes, ``wal`` a second, ``vacuum`` is the statement of one on the table."""

    waiting: int = 0
    others: int = 0
    lag: float = 0.0
    wal: float = 0.0
    vacuum: str = ""


class Advice(NamedTuple):
    """What to do before the next batch; ``reason`` is empty if there is none to hold back."""

    wait: bool
    reason: str


GO_ON = Advice(wait=False, reason="")


class Throttle:
    """Asks the database once a second how it is, and remembers what it said.

    Args:
        at_full_speed: whether to pass over all reasons, and not only those of ``ZERO_DOWNTIME_BACKFILL_IGNORE``, and to
            end autovacuum's ANALYZE of the table.

    Raises:
        ImproperlyConfigured: if that names what is no reason.
    """

    def __init__(self, alias: str, table: str, *, at_full_speed: bool = False) -> None:
        self.alias, self.table = alias, table
        self.at_full_speed = at_full_speed
        self.reasons = () if at_full_speed else reasons()
        self.advice = GO_ON
        self.is_waited_for = False
        self._looked_at = float("-inf")
        self._wal = 0.0

    def look(self) -> Advice:
        now = time.monotonic()
        if now - self._looked_at < (WAIT if self.advice.wait else LOOK_EVERY):
            return self.advice
        if self.at_full_speed:
            with connections[self.alias].cursor() as cursor:
                cursor.execute(CANCEL_ANALYZE, {"table": self.table})
            self._looked_at = now
            return GO_ON
        values: dict[str, Any] = {"us": BACKFILL, "ours": OURS, "looks": LOOKS}
        values |= {"recently": RECENTLY, "table": self.table}
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # what it said earlier in this transaction
            cursor.execute(LOAD, values)
            waiting, others, lag, wal, self.is_waited_for, vacuum = cursor.fetchone()
        rate = (float(wal) - self._wal) / (now - self._looked_at) if self._wal else 0.0
        self._wal, self._looked_at = float(wal), now
        facts = Facts(waiting, others, float(lag or 0), rate, vacuum or "")
        self.advice = next((advice for name, advice in _advised(facts, self.alias) if name in self.reasons), GO_ON)
        return self.advice

    def hold_back(self, seconds: float, say: Callable[[str], object], stop: Callable[[], bool]) -> None:
        """Pause for as long as there is a reason to.

        Args:
            seconds: how long the last batch took.
            say: is told the reason, and nothing once there is none.
            stop: whether to pause no longer.
        """
        advice = self.look()
        say(advice.reason)
        if advice.reason and not advice.wait:
            time.sleep(PAUSE * seconds)
        while advice.wait and not stop():
            time.sleep(WAIT)
            advice = self.look()
            say(advice.reason)


def reasons() -> tuple[str, ...]:
    """Return the reasons to go slower, without those that the settings pass over."""
    if unknown := set(conf.BACKFILL_IGNORE) - set(REASONS):
        raise ImproperlyConfigured(
            f"ZERO_DOWNTIME_BACKFILL_IGNORE names {', '.join(sorted(map(repr, unknown)))}, which holds no backfill "
            f"back. Choose from {', '.join(REASONS)}."
        )
    return tuple(name for name in REASONS if name not in conf.BACKFILL_IGNORE)


def _advised(facts: Facts, alias: str) -> Iterator[tuple[str, Advice]]:
    """Yield each of the ``REASONS`` that there is now, the strongest first."""
    if facts.waiting:
        yield "waiting", Advice(wait=True, reason=f"{_sessions(facts.waiting)} for it")
    if conf.BACKFILL_REPLICA_LAG is not None and facts.lag > conf.BACKFILL_REPLICA_LAG:
        behind = f"a replica is {facts.lag:,.0f} MB behind, more than {conf.BACKFILL_REPLICA_LAG:g}"
        yield "replica_lag", Advice(wait=True, reason=behind)
    if conf.BACKFILL_WAL_RATE is not None and facts.wal > conf.BACKFILL_WAL_RATE:
        written = f"{facts.wal:,.0f} MB of WAL a second, more than {conf.BACKFILL_WAL_RATE:g}"
        yield "wal_rate", Advice(wait=True, reason=written)
    is_against_wraparound = "to prevent wraparound" in facts.vacuum
    if is_against_wraparound:
        yield "wraparound", Advice(wait=True, reason="a vacuum against wraparound is at work on the table")
    if conf.BACKFILL_LOAD and "load" not in conf.BACKFILL_IGNORE and (said := _said_by(conf.BACKFILL_LOAD, alias)):
        yield "load", Advice(wait=True, reason=said)
    if facts.vacuum and not is_against_wraparound:
        yield "autovacuum", Advice(wait=False, reason="an autovacuum is at work on the table: half speed")
    if facts.others:
        others = f"{counted(facts.others, 'other session')} at work: half speed"
        yield "others", Advice(wait=False, reason=others)


def _sessions(count: int) -> str:
    return f"{count} sessions wait" if count > 1 else "1 session waits"


def _said_by(load: str | Callable[[], Any], alias: str) -> str:
    """Ask the project's own function, which returns a reason to wait, or nothing. That it cannot say is one, too.

    In a transaction, as while a look goes in slices, what the function gets wrong is undone.
    """
    try:
        function = import_string(load) if isinstance(load, str) else load
        in_transaction = connections[alias].in_atomic_block
        with transaction.atomic(using=alias) if in_transaction else nullcontext():
            return str(function() or "")
    except Exception as error:  # noqa: BLE001  whatever it is, somebody has to mend that function
        return f"ZERO_DOWNTIME_BACKFILL_LOAD cannot be asked: {summary(error)}"
