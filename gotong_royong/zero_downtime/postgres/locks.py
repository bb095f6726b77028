"""Which locks are there, whom do they hold up, and how does a run take them without making anybody wait?

A statement waits for its lock for a moment only, because whoever comes after it queues behind it. If the lock is not
to be had in that moment, everybody is let through, and it is tried again after a pause, for as long as the patience
lasts. One run at a time holds the runner's lock of a database.
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

# What a table lock keeps others from: https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES
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
POLL = 0.1  # seconds between two looks at the runner's lock
MEETINGS = 5  # tries to have two connections meet in one session
RUNNER = 0x7A65726F646F776E  # "zerodown"; advisory locks belong to one database
AT_WORK = RUNNER + 1  # held by the session that migrates
WORKER = RUNNER + 2  # held by each worker of a backfill, with the others

# Where a policy would hide rows, PostgreSQL refuses the statement: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
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
# Two numbers are to be put in, the halves of the lock's key.
HOLDERS = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::int8 = {} AND objid::int8 = {}
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SET
LOOK_UP = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name"
PUT = "SELECT set_config(name, value, %s) FROM unnest(%s::text[], %s::text[]) AS settings (name, value)"


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's code for the error, whichever layer wrapped it; None if it is none of PostgreSQL's."""
    return getattr(error.__cause__, "sqlstate", None) or getattr(error, "sqlstate", None)


def is_lost(error: BaseException) -> bool:
    """Whether the error ended the session: the server went down, somebody ended it, a transaction took too long."""
    state = sqlstate(error)
    if state is None:
        return isinstance(error, InterfaceError | OperationalError)
    return state.startswith(("08", "57P", IDLE_IN_TRANSACTION, TRANSACTION_TIMEOUT))


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Ask the session, for SQL may begin and end transactions that Django does not know of."""
    session = connection.connection
    if session is None:
        return False
    return not session.autocommit or session.info.transaction_status != TransactionStatus.IDLE


def milliseconds(seconds: float) -> str:
    """Write a time as PostgreSQL's settings want it; never 0, which would mean no limit."""
    return f"{max(1, round(seconds * 1000))}ms"


def no_transaction_timeout(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the setting, which PostgreSQL has since 17, for a transaction that takes as long as a table is large."""
    return {"transaction_timeout": "0"} if connection.pg_version >= 170000 else {}  # type: ignore[attr-defined]


def no_idle_timeouts(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the settings for a session that may idle, also in a transaction, and one that takes long."""
    idle = {"idle_session_timeout": "0", "idle_in_transaction_session_timeout": "0"}
    return idle | no_transaction_timeout(connection)


def no_timeouts(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the settings for a session that nothing is to end or to hurry."""
    return {"lock_timeout": "0", "statement_timeout": "0"} | no_idle_timeouts(connection)


def look_up(connection: BaseDatabaseWrapper, *names: str) -> dict[str, str]:
    """Return these settings as they are in the session now."""
    with connection.cursor() as cursor:
        cursor.execute(LOOK_UP, [list(names)])
        return dict(cursor.fetchall())


def put(connection: BaseDatabaseWrapper, settings: dict[str, str], *, local: bool = False) -> None:
    """Set these settings in the session, or for the transaction if they are to be ``local``."""
    with connection.cursor() as cursor:
        cursor.execute(PUT, [local, list(settings), list(settings.values())])


@contextmanager
def session_settings(connection: BaseDatabaseWrapper, **values: str) -> Iterator[dict[str, str]]:
    """Change settings of the session, or inside a transaction of that, and put them back, also after an error.

    Takes no lock. Yields what they were before.

    Args:
        values: as ``SET`` takes them (https://www.postgresql.org/docs/current/sql-set.html).
    """
    before, local = look_up(connection, *values), connection.in_atomic_block
    put(connection, values, local=local)
    try:
        yield before
    finally:
        # A lost connection took its settings with it, and so does a transaction that will be rolled back.
        with suppress(Error):
            if not connection.needs_rollback:
                put(connection, before, local=local)


def is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether somebody has begun a transaction and not ended it, also without Django."""
    session = connection.connection
    is_open = session and session.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}
    return bool(connection.in_atomic_block or is_open)


@contextmanager
def session_of_its_own(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Give the connection a session that ends when it is closed, and that commits what is done, during the block.

    A pool would keep the session, with its locks and settings, for others. With AUTOCOMMIT = False Django commits
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
    """Return the seconds to wait after that try, from 1 on: twice as many each time, up to a bound, never the same."""
    doublings = min(attempt - 1, 10)
    return min(LONGEST_PAUSE, FIRST_PAUSE * float(2**doublings)) * random.uniform(0.5, 1.5)  # noqa: S311


@contextmanager
def held(connection: BaseDatabaseWrapper, key: int, report: Callable[[str], object]) -> Iterator[None]:
    """Hold an advisory lock for as long as the block lasts; if this process dies, the lock goes with its session.

    The lock is polled, never waited for: a waiting session holds a snapshot, which a concurrent index build of the
    run it waits for would wait for in turn (https://www.postgresql.org/docs/current/functions-admin.html).

    Args:
        report: called at every look that finds the lock taken, with a description of the session that holds it.
    """
    take(connection, key, report)
    try:
        yield
    finally:
        with suppress(Error), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [key])


def take(connection: BaseDatabaseWrapper, key: int, report: Callable[[str], object]) -> None:
    """Take the lock that ``held`` holds."""
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
            if cursor.fetchone()[0]:
                return
            cursor.execute(BLOCKERS, [holders(connection, key)])
            if whom := described(cursor.fetchall()):  # it may have let go of it by now
                report(whom)
            time.sleep(POLL)


def wait_for_tables(connection: BaseDatabaseWrapper, names: Sequence[str], report: Callable[[str], object]) -> None:
    """Wait until nobody has locked these tables against writes. Takes no lock.

    Args:
        names: as the search path finds them; one that is not there is locked by nobody.
        report: is told the sessions that are waited for, when they change.

    Raises:
        LockNotObtained: if that takes longer than the patience.
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
                "(SELECT pg_terminate_backend(…)), or do this again later."
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
    """Return an advisory lock's key as pg_locks shows it."""
    return key >> 32, key & 0xFFFFFFFF


def described(sessions: list[Any]) -> str:
    """Say in words what ``SESSIONS`` found. Of other users' sessions a role may not be shown all."""
    return "; ".join(
        f"process {pid} ("
        + ", ".join(filter(None, [name, f"user {user}", state and f"{state} for {seconds or 0:.1f} s"]))
        + ")"
        for pid, name, user, state, seconds in sessions
    )


def refuse_transaction_pooling(one: BaseDatabaseWrapper, other: BaseDatabaseWrapper) -> None:
    """Make sure that our sessions are ours: two connections must never meet in one session of the server.

    Costs a direct connection nothing: there, libpq and the server agree on the process id. Where others use the pool in
    the same moment, the two may miss each other, so it is tried some times.

    Raises:
        TransactionPooling: if they do meet.
    """
    before = _backend(one)
    if before == one.connection.info.backend_pid:
        return
    with other.cursor() as cursor:
        for _ in range(MEETINGS):
            if _backend(one) != before:  # which leaves that session to whoever comes next
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
