"""Who lets people in when the watchdog cannot?

Its thread stands still while the process is stopped, while a library keeps the GIL, or while it waits for somebody to
read the output. A process of its own would be stopped with the same job, container or machine, would be cut off by the
same network, and would cost the start of an interpreter. So it is the server that watches then: in a session of its own
it executes a loop in PL/pgSQL for as long as the run lasts. As long as the watchdog asks often enough, which the loop
sees from pg_stat_activity, it does nothing. Once the watched session is gone, or this one, it ends.
"""

import time
from contextlib import suppress
from threading import Lock
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, ExecStatus

LEAST = 0.5  # seconds for which a watchdog may be late on a busy machine, however small the budget is

# Who waits for a lock in pg_locks as somebody who reads or writes: not to vacuum, to analyze or to build an index, and
# not as a worker of a backfill.
IS_A_USER = r"""
    NOT (mode = 'ShareUpdateExclusiveLock' OR locktype = 'virtualxid' OR coalesce(
        backend_type = 'autovacuum worker' OR application_name = 'backfill'
        OR query ~* '^(\s|--[^\n]*\n|/\*.*?\*/)*(VACUUM|ANALY[SZ]E)\M', false))
"""

ENDED = "migrate: ended"
"""By which name the watchdog's session tells the loop to end."""

# Each COMMIT ends what the loop has seen, and the snapshot that a concurrent index build would wait for. A session that
# runs a statement is canceled; one that idles in its transaction must be ended, for it holds its locks all the same.
LOOP = """
DO $backstop$
DECLARE
    asked timestamptz := clock_timestamp();
    last timestamptz;
    is_there bool;
    is_over bool;
    unwatched float8;
    longest float8;
BEGIN
    LOOP
        PERFORM pg_sleep({pause});
        COMMIT;
        SELECT bool_or(pid = {us}), bool_or(application_name = '{ended}'), max(query_start) FILTER (WHERE pid <> {us})
        INTO is_there, is_over, last FROM pg_stat_activity WHERE pid IN ({us}, {watchdog});
        EXIT WHEN is_over OR is_there IS NOT TRUE;
        asked := coalesce(last, asked);
        unwatched := extract(epoch FROM clock_timestamp() - asked);
        CONTINUE WHEN unwatched < {budget} / 2;
        SELECT max(extract(epoch FROM clock_timestamp() - waitstart)) INTO longest
        FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
        WHERE NOT granted AND {us} = ANY(pg_blocking_pids(pid)) AND {is_a_user};
        CONTINUE WHEN longest IS NULL OR greatest(unwatched, longest) < {budget};
        RAISE NOTICE 'somebody waited for % s', round(longest::numeric, 1);
        PERFORM CASE WHEN state LIKE 'idle%' THEN pg_terminate_backend(pid) ELSE pg_cancel_backend(pid) END
        FROM pg_stat_activity WHERE pid = {us};
    END LOOP;
END
$backstop$
"""
PAUSE = 0.02  # seconds, at most, for which it sleeps


class Backstop:
    """Has the server watch one session.

    Args:
        session: in which the server does that from now on; nothing else can be done with it.
        us: the process that is watched.
        watchdog: the process that asks every moment, unless it cannot.
        budget: seconds that anybody may wait for us before the running statement is canceled, or the session ended.
    """

    def __init__(self, session: "psycopg.Connection[Any]", *, us: int, watchdog: int, budget: float) -> None:
        self.session, self.us, self.watchdog, self.pid = session, us, watchdog, session.info.backend_pid
        self.lost = ""
        """What has ended it before its time."""
        self._heard, self._lock = list[str](), Lock()
        budget = max(budget, LEAST)
        facts = {"us": us, "watchdog": watchdog, "budget": budget, "pause": min(budget / 10, PAUSE)}
        session.add_notice_handler(self._hear)
        session.pgconn.send_query(LOOP.format(**facts, ended=ENDED, is_a_user=IS_A_USER).encode())
        session.pgconn.flush()

    def heard(self) -> str:
        """Return what the server has said since this was last asked; it says why it ends something."""
        with self._lock:
            self._is_at_work()
            said, self._heard[:] = " ".join(self._heard), []
            return said

    def finish(self, watchdog: "psycopg.Connection[Any]") -> None:
        """Let it end by itself, and wait for that, a moment."""
        with suppress(psycopg.Error):
            watchdog.execute("SELECT set_config('application_name', %s, false)", [ENDED])
            until = time.monotonic() + 1
            while self._is_at_work() and time.monotonic() < until:
                time.sleep(PAUSE / 10)
        self.session.close()

    def end(self, other: "psycopg.Connection[Any]") -> None:
        """End it at once, by way of another session."""
        with suppress(psycopg.Error):
            other.execute("SELECT pg_terminate_backend(%s)", [self.pid])
        with self._lock:
            self.session.close()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "NOTICE":  # and not that the server ends its sessions
            self._heard.append(notice.message_primary or "")

    def _is_at_work(self) -> bool:
        pgconn = self.session.pgconn
        if pgconn.status != ConnStatus.OK:
            return False
        try:
            pgconn.consume_input()
            if pgconn.is_busy():
                return True
            result = pgconn.get_result()
        except psycopg.Error as error:
            self.lost = str(error)
        else:
            if result and result.status == ExecStatus.FATAL_ERROR:
                self.lost = result.error_message.decode(errors="replace")
        return False
