"""Who is kept out by a session, and who lets people in when the watchdog cannot?

The watchdog's thread stands still while the process is stopped, while a library keeps the GIL, or while it waits for
somebody to read the output. A process of its own would be stopped with the same job, container or machine, would be cut
off by the same network, and would cost the start of an interpreter. So it is the server that watches then: in a session
of its own it executes a loop in PL/pgSQL for as long as the run lasts. As long as the watchdog asks often enough, which
the loop sees from pg_stat_activity, it does nothing. Once the watched session is gone, or the watchdog's, it ends.
"""

import time
from threading import Lock
from typing import Any

import psycopg

from ..postgres.locks import HOLDERS, WORKER, halves

LEAST = 0.5  # seconds for which a watchdog may be late on a busy machine, however small the budget is
PAUSE = 0.02  # seconds, at most, for which the loop sleeps

# The session itself, if it waits for a lock, and who waits for it, also behind others who do. Who vacuums, analyzes or
# builds an index is nobody who reads or writes, nor is a worker of a backfill; those behind them are. A waiting
# session's row has no start in its first moment: https://www.postgresql.org/docs/current/view-pg-locks.html
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

# A session that runs a statement is canceled; one that idles in its transaction must be ended, for it holds its locks.
END = """
    SELECT CASE WHEN state LIKE 'idle%' THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END
    FROM pg_stat_activity WHERE pid = {us}
"""

# Each COMMIT ends what the loop has seen, and the snapshot that a concurrent index build would wait for.
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
    """Has the server watch one session.

    Args:
        session: in which the server does that from now on; nothing else can be done with it.
        us: the process that is watched.
        watchdog: the session that asks every moment, unless it cannot.
        budget: seconds that anybody may wait for us before the running statement is canceled, or the session ended.
    """

    def __init__(
        self, session: "psycopg.Connection[Any]", *, us: int, watchdog: "psycopg.Connection[Any]", budget: float
    ) -> None:
        self.session, self.watchdog = session, watchdog
        self.lost = ""
        """What has ended it before its time."""
        self._heard, self._lock = list[str](), Lock()
        budget = max(budget, LEAST)
        facts = {"us": us, "watchdog": watchdog.info.backend_pid, "budget": budget, "pause": min(budget / 10, PAUSE)}
        session.add_notice_handler(self._hear)
        session.pgconn.send_query(LOOP.format(**facts).encode())
        session.pgconn.flush()

    def heard(self) -> str:
        """Return what the server has said since this was last asked; it says why it ends something."""
        with self._lock:
            self._is_at_work()
            said, self._heard[:] = " ".join(self._heard), []
            return said

    def close(self) -> None:
        """End both sessions; the loop ends, and a moment is waited for that, when the watchdog's is gone."""
        self.watchdog.close()
        until = time.monotonic() + 1
        with self._lock:
            while self._is_at_work() and time.monotonic() < until:
                time.sleep(PAUSE / 10)
            self.session.close()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "NOTICE":  # and not that the server ends its sessions
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
