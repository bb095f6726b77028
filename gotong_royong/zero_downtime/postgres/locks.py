"""Which locks exist, and how does a run take them without making others wait?

A statement waits for its lock only for LOCK_TIMEOUT, because other sessions queue behind it. After a timeout it pauses,
so that they pass, and tries again until PATIENCE ends. One run at a time holds the runner's lock of a database.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from ..conf import conf
from ..exceptions import LockNotObtained, TransactionPooling

# What each lock on a table blocks: https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES
BLOCKS = {
    "AccessShareLock": "",
    "RowShareLock": "",
    "RowExclusiveLock": "",
    "ShareUpdateExclusiveLock": "",
    "ShareLock": "writes",
    "ShareRowExclusiveLock": "writes",
    "ExclusiveLock": "writes",
    "AccessExclusiveLock": "reads and writes",
}

# https://www.postgresql.org/docs/current/errcodes-appendix.html
LOCK_NOT_AVAILABLE, DEADLOCK, QUERY_CANCELED = "55P03", "40P01", "57014"
NOT_ALLOWED, READ_ONLY, IDLE_IN_TRANSACTION, TRANSACTION_TIMEOUT = "42501", "25006", "25P03", "25P04"

THERE_ALREADY = {"42P07", "42701", "42710"}  # a table or index, a column, another object

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds
POLL = 0.1  # seconds between two tries for an advisory lock
MEETINGS = 5  # tries to detect that two connections share one session
RUNNER = 0x7A65726F646F776E  # "zerodown"; advisory locks belong to one database
AT_WORK = RUNNER + 1  # held by the session that migrates
WORKER = RUNNER + 2  # shared by the workers of backfills

# PostgreSQL refuses a statement from which a policy hides rows: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
ALL_ROWS = {"row_security": "off"}

# https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
SESSIONS = """
    SELECT pid, coalesce(nullif(application_name, ''), backend_type), usename, state,
           extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change))::float8
    FROM pg_stat_activity
"""
BLOCKERS = f"{SESSIONS} WHERE pid = ANY(%s) ORDER BY xact_start"
TABLES_HELD = """ WHERE pid IN (
    SELECT pid FROM pg_locks JOIN unnest(%s::text[]) AS name ON relation = to_regclass(name)
    WHERE granted AND mode = ANY(%s) AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) ORDER BY xact_start"""
# Format it with the two halves of the lock's key.
HOLDERS = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::int8 = {} AND objid::int8 = {}
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SET
LOOK_UP = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name"
PUT = "SELECT set_config(name, value, %s) FROM unnest(%s::text[], %s::text[]) AS settings (name, value)"


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code for the error, whichever layer wrapped it; None if the error is not PostgreSQL's."""
    return getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None)


def is_lost(error: BaseException) -> bool:
    """Whether the error ended the session."""
    state = sqlstate(error)
    if state is None:
        return isinstance(error, InterfaceError | OperationalError)
    return state.startswith(("08", "57P", IDLE_IN_TRANSACTION, TRANSACTION_TIMEOUT))


def runs_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether the next statement runs in a transaction. Ask the session: SQL may begin one without Django."""
    session = connection.connection
    if session is None:
        return False
    return not session.autocommit or session.info.transaction_status != TransactionStatus.IDLE


def has_open_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether a transaction has begun and not ended. With autocommit off, none has before the first statement."""
    session = connection.connection
    is_open = session and session.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}
    return bool(connection.in_atomic_block or is_open)


def milliseconds(seconds: float) -> str:
    """Format seconds for a PostgreSQL setting; never as 0, which means no limit."""
    return f"{max(1, round(seconds * 1000))}ms"


def no_transaction_timeout(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the setting for a transaction without a time limit; PostgreSQL has one since 17."""
    return {"transaction_timeout": "0"} if connection.pg_version >= 170000 else {}  # type: ignore[attr-defined]


def no_idle_timeouts(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the settings for a session that may idle, also in a long transaction."""
    idle = {"idle_session_timeout": "0", "idle_in_transaction_session_timeout": "0"}
    return idle | no_transaction_timeout(connection)


def no_timeouts(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the settings for a session without any time limit."""
    return {"lock_timeout": "0", "statement_timeout": "0"} | no_idle_timeouts(connection)


def look_up(connection: BaseDatabaseWrapper, *names: str) -> dict[str, str]:
    """Return the session's current values of these settings."""
    with connection.cursor() as cursor:
        cursor.execute(LOOK_UP, [list(names)])
        return dict(cursor.fetchall())


def put(connection: BaseDatabaseWrapper, settings: dict[str, str], *, local: bool = False) -> None:
    """Set these settings in the session, or only in the transaction if ``local``."""
    with connection.cursor() as cursor:
        cursor.execute(PUT, [local, list(settings), list(settings.values())])


@contextmanager
def session_settings(connection: BaseDatabaseWrapper, **values: str) -> Iterator[dict[str, str]]:
    """Change settings for the block, in the session or in Django's open transaction. Takes no lock.

    Yields the values before.

    Args:
        values: as ``SET`` takes them (https://www.postgresql.org/docs/current/sql-set.html).
    """
    before, local = look_up(connection, *values), connection.in_atomic_block
    put(connection, values, local=local)
    try:
        yield before
    finally:
        # A lost connection has lost its settings; a rollback restores them by itself.
        with suppress(Error):
            if not connection.needs_rollback:
                put(connection, before, local=local)


@contextmanager
def session_of_its_own(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Give the connection a session with autocommit and outside of any pool for the block.

    A pool would give the session, with its locks and settings, to others. With AUTOCOMMIT = False Django commits
    nothing of a migration.
    """
    settings = connection.settings_dict
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    ours = {**settings, "AUTOCOMMIT": True, "OPTIONS": options}
    if ours == settings:
        yield
        return
    try:
        connection.close()
        connection.settings_dict = ours
        yield
    finally:
        connection.close()
        connection.settings_dict = settings


def pause_after(attempt: int) -> float:
    """Return the seconds to wait after a try, the first being 1: they double up to a bound, with random jitter."""
    doublings = min(attempt - 1, 10)
    return min(LONGEST_PAUSE, FIRST_PAUSE * float(2**doublings)) * random.uniform(0.5, 1.5)  # noqa: S311


@contextmanager
def held(connection: BaseDatabaseWrapper, key: int, report: Callable[[str], object]) -> Iterator[None]:
    """Hold an advisory lock during the block; if this process dies, the server releases it with the session.

    See https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS.

    Args:
        report: see ``take``.
    """
    take(connection, key, report)
    try:
        yield
    finally:
        with suppress(Error), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [key])


def take(connection: BaseDatabaseWrapper, key: int, report: Callable[[str], object]) -> None:
    """Take an advisory lock; poll until it is free.

    It polls, because a waiting session holds a snapshot, and the other run's concurrent index build would wait for it.

    Args:
        report: called after each failed try with a description of the session that holds the lock.
    """
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
            if cursor.fetchone()[0]:
                return
            cursor.execute(BLOCKERS, [holders(connection, key)])
            if whom := described(cursor.fetchall()):  # else it has released the lock meanwhile
                report(whom)
            time.sleep(POLL)


def wait_for_tables(connection: BaseDatabaseWrapper, names: Sequence[str], report: Callable[[str], object]) -> None:
    """Wait until no session blocks writes to these tables. Takes no lock.

    Args:
        names: as the search path finds them; a table that does not exist is free.
        report: called with the blocking sessions when they change.

    Raises:
        LockNotObtained: after ZERO_DOWNTIME_PATIENCE.
    """
    until, before = time.monotonic() + conf.PATIENCE, set[int]()
    modes = [mode for mode, blocked in BLOCKS.items() if blocked]
    while True:
        with connection.cursor() as cursor:
            cursor.execute(SESSIONS + TABLES_HELD, [list(names), modes])
            sessions = cursor.fetchall()
        if not sessions:
            return
        whom = described(sessions)
        if time.monotonic() > until:
            raise LockNotObtained(
                f"{whom} has locked a table that every run writes ({', '.join(names)}) for longer than "
                f"{conf.PATIENCE:g} s (ZERO_DOWNTIME_PATIENCE). Nothing was changed. End that session "
                "(SELECT pg_terminate_backend(…)), or try again later."
            )
        if before != (before := {pid for pid, *_ in sessions}):
            report(f"{whom}, which has locked a table that every run writes")
        time.sleep(POLL)


def holders(connection: BaseDatabaseWrapper, key: int) -> list[int]:
    """Return the process ids of the server's sessions that hold the advisory lock."""
    with connection.cursor() as cursor:
        cursor.execute(HOLDERS.format(*halves(key)))
        return [pid for (pid,) in cursor.fetchall()]


def halves(key: int) -> tuple[int, int]:
    """Return the two halves of an advisory lock's key, as pg_locks has them."""
    return key >> 32, key & 0xFFFFFFFF


def described(sessions: list[Any]) -> str:
    """Return the rows of ``SESSIONS`` in words. A role may not see all of other users' sessions."""
    return "; ".join(
        f"process {pid} ("
        + ", ".join(filter(None, [name, f"user {user}", state and f"{state} for {seconds or 0:.1f} s"]))
        + ")"
        for pid, name, user, state, seconds in sessions
    )


def refuse_transaction_pooling(one: BaseDatabaseWrapper, other: BaseDatabaseWrapper) -> None:
    """Make sure that no proxy lets two connections share one session of the server.

    On a direct connection libpq and the server agree on the process id, so that is enough. Behind a pool the two may
    miss each other while others use it, so it tries several times.

    Raises:
        TransactionPooling: if they share one.
    """
    before = _backend(one)
    if before == one.connection.info.backend_pid:
        return
    with other.cursor() as cursor:
        for _ in range(MEETINGS):
            if _backend(one) != before:
                raise TransactionPooling
            cursor.execute("BEGIN")
            try:
                if _backend(other) == before or _backend(one) != before:
                    raise TransactionPooling
            finally:
                cursor.execute("ROLLBACK")


def _backend(connection: BaseDatabaseWrapper) -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]
