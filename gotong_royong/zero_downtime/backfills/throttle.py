"""Should a backfill go slower, and why? A worker asks the database between two batches.

A backfill waits for sessions that wait for a backfill, a replica that lags, too much WAL, a vacuum against wraparound
on its table, and a function of the project. It goes at half speed while others are at work in the same database, or an
autovacuum is on its table. ``REASONS`` names each, and ZERO_DOWNTIME_BACKFILL_IGNORE switches it off.
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
"""The names of the engine's sessions. They affect only the pace, because any session may take such a name."""
ASK_EVERY = 1.0  # seconds
PAUSE = 0.4  # of the time of a batch
WAIT = 0.5  # seconds until it asks again whether the reason to wait is gone
RECENTLY = "5 seconds"  # others that did nothing for so long are not at work
# The last statements of sessions that poll for tasks or progress every few seconds: they are not at work.
MONITORING = [r"%procrastinate\_%", r"%zero\_downtime\_%"]
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

# While an ANALYZE runs, its snapshot keeps the space of dead rows from reuse. Autovacuum's ANALYZE sleeps in between,
# so it takes seconds; autovacuum repeats it within a minute. A role that may not cancel it leaves it alone
# (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL).
CANCEL_ANALYZE = f"""
    SELECT pg_cancel_backend(pid) FROM {AUTOVACUUMS} AND analyzes AND (
        current_setting('is_superuser')::bool OR pg_has_role(to_regrole('pg_signal_autovacuum_worker'), 'USAGE')
    )
"""  # noqa: S608

# Without pg_read_all_stats the state of other roles' sessions is NULL: they count as at work.
# https://www.postgresql.org/docs/current/monitoring-stats.html
LOAD = f"""
    SELECT (SELECT count(*) FROM pg_stat_activity waiting WHERE wait_event_type = 'Lock' AND application_name <> %(us)s
            AND datname = current_database() AND EXISTS (
                SELECT FROM pg_stat_activity
                WHERE pid = ANY(pg_blocking_pids(waiting.pid)) AND application_name = %(us)s
            )),
           (SELECT count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND datname = current_database()
                  AND pid <> pg_backend_pid() AND application_name <> ALL(%(ours)s)
                  AND query NOT LIKE ALL(%(monitoring)s)
                  AND (state IS NULL OR state = 'active' OR state_change > clock_timestamp() - %(recently)s::interval)),
           (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) / 1048576 FROM pg_stat_replication
            WHERE state IN ('streaming', 'catchup')),
           pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') / 1048576,
           EXISTS (SELECT FROM pg_stat_activity
                   WHERE wait_event_type = 'Lock' AND pg_backend_pid() = ANY(pg_blocking_pids(pid))),
           (SELECT max(query) FROM {AUTOVACUUMS})
"""  # noqa: S608


class Facts(NamedTuple):
    """What the database says: ``lag`` in MB, ``wal`` in MB a second, ``vacuum`` the statement of one on the table."""

    waiting: int = 0
    others: int = 0
    lag: float = 0.0
    wal: float = 0.0
    vacuum: str = ""


class Advice(NamedTuple):
    """What to do before the next batch; ``reason`` is empty if nothing holds it back."""

    wait: bool
    reason: str


GO_ON = Advice(wait=False, reason="")


class Throttle:
    """Asks the database at most once a second whether to go slower.

    Args:
        at_full_speed: whether to ignore all reasons, and to cancel autovacuum's ANALYZE of the table.

    Raises:
        ImproperlyConfigured: if ``ZERO_DOWNTIME_BACKFILL_IGNORE`` names an unknown reason.
    """

    def __init__(self, alias: str, table: str, *, at_full_speed: bool = False) -> None:
        self.alias, self.table = alias, table
        self.at_full_speed = at_full_speed
        self.reasons = () if at_full_speed else reasons()
        self.advice = GO_ON
        self.is_waited_for = False
        self._asked_at = float("-inf")
        self._wal = 0.0

    def ask(self) -> Advice:
        """Return what to do before the next batch; at full speed also cancel autovacuum's ANALYZE of the table."""
        now = time.monotonic()
        if now - self._asked_at < (WAIT if self.advice.wait else ASK_EVERY):
            return self.advice
        if self.at_full_speed:
            with connections[self.alias].cursor() as cursor:
                cursor.execute(CANCEL_ANALYZE, {"table": self.table})
            self._asked_at = now
            return GO_ON
        values: dict[str, Any] = {"us": BACKFILL, "ours": OURS, "monitoring": MONITORING}
        values |= {"recently": RECENTLY, "table": self.table}
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # statistics are cached for a transaction
            cursor.execute(LOAD, values)
            waiting, others, lag, wal, self.is_waited_for, vacuum = cursor.fetchone()
        rate = (float(wal) - self._wal) / (now - self._asked_at) if self._wal else 0.0
        self._wal, self._asked_at = float(wal), now
        facts = Facts(waiting, others, float(lag or 0), rate, vacuum or "")
        self.advice = next((advice for name, advice in _advised(facts, self.alias) if name in self.reasons), GO_ON)
        return self.advice

    def hold_back(self, seconds: float, say: Callable[[str], object], stop: Callable[[], bool]) -> None:
        """Pause while there is a reason to.

        Args:
            seconds: the time of the last batch.
            say: takes the reason; an empty one says that there is none.
            stop: whether to end the pause.
        """
        advice = self.ask()
        say(advice.reason)
        if advice.reason and not advice.wait:
            time.sleep(PAUSE * seconds)
        while advice.wait and not stop():
            time.sleep(WAIT)
            advice = self.ask()
            say(advice.reason)


def reasons() -> tuple[str, ...]:
    """Return the reasons to go slower that the settings do not ignore."""
    if unknown := set(conf.BACKFILL_IGNORE) - set(REASONS):
        raise ImproperlyConfigured(
            f"ZERO_DOWNTIME_BACKFILL_IGNORE names {', '.join(sorted(map(repr, unknown)))}, which holds no backfill "
            f"back. Choose from {', '.join(REASONS)}."
        )
    return tuple(name for name in REASONS if name not in conf.BACKFILL_IGNORE)


def _advised(facts: Facts, alias: str) -> Iterator[tuple[str, Advice]]:
    """Yield each of the ``REASONS`` that applies now, the strongest first."""
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
    """Ask the project's function for a reason to wait. If the function fails, that is a reason to wait.

    In the transaction of a verification, a savepoint undoes what a failed function did.
    """
    try:
        function = import_string(load) if isinstance(load, str) else load
        in_transaction = connections[alias].in_atomic_block
        with transaction.atomic(using=alias) if in_transaction else nullcontext():
            return str(function() or "")
    except Exception as error:  # noqa: BLE001  (the function may raise anything)
        return f"ZERO_DOWNTIME_BACKFILL_LOAD cannot be asked: {summary(error)}"
