"""Whom does a session block, and who cancels it if the watchdog cannot?

The watchdog's thread stands still while the process is stopped, a library keeps the GIL, or nobody reads the output. A
second process would stop with the same job, container or machine, lose the same network, and cost the start of an
interpreter. So the server watches: a session executes a loop in PL/pgSQL during the run. The loop does nothing while it
sees in pg_stat_activity that the watchdog asks often enough. It ends with the watched session or the watchdog's.
"""

import time
from threading import Lock
from typing import Any

import psycopg

from ..postgres.locks import HOLDERS, WORKER, halves

LEAST = 0.5  # seconds that the watchdog may be late on a busy machine, however small the budget is
PAUSE = 0.02  # seconds between two looks of the loop, at most

# The session itself, if it waits for a lock, and the sessions that wait for it, directly or behind others. VACUUM,
# ANALYZE, index builds and workers of backfills do not count, but sessions behind them do. waitstart is NULL in the
# first moment of a wait: https://www.postgresql.org/docs/current/view-pg-locks.html
KEPT_OUT = rf"""
    WITH RECURSIVE waiting AS MATERIALIZED (
        SELECT pid, relation, waitstart, mode = 'ShareUpdateExclusiveLock' OR locktype = 'virtualxid' AS maintains,
               coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0)::float8 AS seconds,
               pg_blocking_pids(pid) AS blockers
        FROM pg_locks WHERE NOT granted
    ), behind AS (
        SELECT {{us}} AS pid UNION SELECT waiting.pid FROM waiting JOIN behind ON behind.pid = ANY (blockers)
    )
    SELECT waiting.* FROM waiting JOIN behind USING (pid) LEFT JOIN pg_stat_activity USING (pid)
    WHERE pid = {{us}} OR NOT (maintains OR pid IN ({HOLDERS.format(*halves(WORKER))}) OR coalesce(
        backend_type = 'autovacuum worker' OR query ~* '^(\s|--[^\n]*\n|/\*.*?\*/)*(VACUUM|ANALY[SZ]E)\M', false))
"""  # noqa: S608

# Cancel a running statement; end a session that idles in its transaction, because it keeps its locks.
END = """
    SELECT CASE WHEN state LIKE 'idle%' THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END
    FROM pg_stat_activity WHERE pid = {us}
"""

# Each COMMIT ends the loop's snapshot, for which a concurrent index build would wait.
LOOP = f"""
DO $backstop$
DECLARE
    unwatched float8;
    longest float8;
BEGIN
    LOOP
        PERFORM pg_sleep({{pause}});
        COMMIT;
        SELECT extract(epoch FROM clock_timestamp() - max(query_start) FILTER (WHERE pid = {{watchdog}}))
        INTO unwatched FROM pg_stat_activity WHERE pid IN ({{us}}, {{watchdog}}) HAVING count(*) = 2;
        EXIT WHEN unwatched IS NULL;
        CONTINUE WHEN unwatched < {{budget}} / 2;
        SELECT max(seconds) INTO longest FROM ({KEPT_OUT}) AS kept_out WHERE pid <> {{us}};
        CONTINUE WHEN longest IS NULL OR greatest(unwatched, longest) < {{budget}};
        RAISE NOTICE 'somebody waited for % s', round(longest::numeric, 1);
        PERFORM ({END});
    END LOOP;
END
$backstop$
"""  # noqa: S608


class Backstop:
    """Makes the server watch one session.

    Args:
        session: runs the loop, and nothing else from now on.
        us: the process id of the watched session.
        watchdog: the watchdog's session.
        budget: seconds that a session may wait for us before the running statement is canceled, or the session ended.
    """

    def __init__(
        self, session: "psycopg.Connection[Any]", *, us: int, watchdog: "psycopg.Connection[Any]", budget: float
    ) -> None:
        self.session, self.watchdog = session, watchdog
        self.lost = ""
        """The error that ended it too early."""
        self._heard, self._lock = list[str](), Lock()
        budget = max(budget, LEAST)
        facts = {"us": us, "watchdog": watchdog.info.backend_pid, "budget": budget, "pause": min(budget / 10, PAUSE)}
        session.add_notice_handler(self._hear)
        session.pgconn.send_query(LOOP.format(**facts).encode())
        session.pgconn.flush()

    def heard(self) -> str:
        """Return the server's notices since the last call; each says why it canceled something."""
        with self._lock:
            self._is_at_work()
            said, self._heard[:] = " ".join(self._heard), []
            return said

    def close(self) -> None:
        """Close both sessions; the loop ends by itself once the watchdog's is gone, and gets a second for that."""
        self.watchdog.close()
        until = time.monotonic() + 1
        with self._lock:
            while self._is_at_work() and time.monotonic() < until:
                time.sleep(PAUSE / 10)
            self.session.close()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "NOTICE":  # not a message that the server ends the session
            self._heard.append(notice.message_primary or "")

    def _is_at_work(self) -> bool:
        try:
            self.session.pgconn.consume_input()
            if self.session.pgconn.is_busy():
                return True
            if result := self.session.pgconn.get_result():
                self.lost = self.lost or result.error_message.decode(errors="replace")
        except psycopg.Error as error:
            self.lost = self.lost or str(error)
        return False
