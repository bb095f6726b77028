"""What does a statement lock that may run in no transaction? Its own session answers nothing until it has ended.

So a second session holds ROW EXCLUSIVE on its tables. While the statement waits for that, the second session reads
which locks it has.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

POLL = 0.002  # seconds between two looks
WAITING = """
    SELECT relation::bigint, mode, EXISTS (SELECT FROM pg_locks WHERE pid = %(pid)s AND NOT granted)
    FROM pg_locks WHERE pid = %(pid)s AND locktype = 'relation' AND relation >= 16384
"""


@contextmanager
def probed(connection: BaseDatabaseWrapper, tables: list[str]) -> Iterator[set[tuple[int, str]]]:
    """Hold ROW EXCLUSIVE on the tables until the connection's session waits for it; collect that session's locks."""
    seen: set[tuple[int, str]] = set()
    pid = connection.connection.info.backend_pid
    second: psycopg.Connection[Any] = connection.get_new_connection(connection.get_connection_params())
    second.autocommit = True
    second.execute("BEGIN")
    for name in tables:
        quoted = ".".join(connection.ops.quote_name(part) for part in name.split("."))
        second.execute(f"LOCK TABLE {quoted} IN ROW EXCLUSIVE MODE")
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(POLL):
            rows = second.execute(WAITING, {"pid": pid}).fetchall()
            seen.update((oid, mode) for oid, mode, _ in rows)
            if any(waits for *_, waits in rows) and second.info.transaction_status == TransactionStatus.INTRANS:
                second.execute("COMMIT")

    thread = threading.Thread(target=look, name="lock-probe", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        second.close()
