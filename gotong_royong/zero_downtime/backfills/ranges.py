"""Into which ranges is a table cut, and how does one worker hold a range?

A worker claims a range with a lease and gets a token. Each of its batches first locks the range's row, if that still
has the token. So no other worker takes the range in the middle of a batch, and a worker that lost its lease cannot
commit. All times are from the server's clock.
"""

import itertools
import os
import socket
import threading
from typing import Any, NamedTuple

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Model

from ..conf import conf
from ..models import Backfill, BackfillRange
from ..postgres import locks

LEASE = 30.0  # seconds that a worker may be silent
FLUSH_AFTER = "256kB"  # backend_flush_after while others are at work
BLOCKS, FEWEST = 2_048, 256  # of a range, at most and at least: 16 and 2 MB
RANGES, MOST_RANGES = 64, 1_000  # of a sweep: idle workers wait for the last of them
SAMPLE = 20_000  # rows that give the bounds of key ranges

RANGE, BACKFILL = BackfillRange._meta.db_table, Backfill._meta.db_table

LEASED_UNTIL = "clock_timestamp() + %(lease)s * interval '1 second'"

# A range is free without a worker, without the worker's session, or after its lease. A verification may read the table
# in one transaction that outlasts the lease.
HELD = """(leased_until IS NOT NULL AND EXISTS (
    SELECT FROM pg_stat_activity WHERE pid = backend AND (
        leased_until > clock_timestamp() OR (state <> 'idle' AND xact_start < leased_until)
    )
))"""
# A crash that loses the claim also loses its batches, so the claim need not wait for the disk.
CLAIM = f"""
    UPDATE {RANGE} SET token = token + 1, worker = %(worker)s, backend = pg_backend_pid(),
                       leased_until = {LEASED_UNTIL}
    WHERE id = (
        SELECT part.id FROM {RANGE} part JOIN {BACKFILL} whole ON whole.id = part.backfill_id
        WHERE whole.id = %(backfill)s AND whole.status = 'running' AND part.sweep = whole.sweep
              AND part.finished_at IS NULL AND NOT {HELD}
        ORDER BY part.number LIMIT 1 FOR UPDATE OF part SKIP LOCKED
    )
    RETURNING *, set_config('synchronous_commit', 'off', true)
"""  # noqa: S608

# Locks the range's row (FOR UPDATE). A batch that a crash loses is done again, so it need not wait for the disk; a
# verification waits for it. While others are at work, backend_flush_after spreads the writes; else the kernel writes
# them all at once after half a minute, and commits wait. Alone, the setting would take a tenth longer
# (https://www.postgresql.org/docs/current/runtime-config-resource.html).
FENCE = f"""
    SELECT whole.status, set_config('synchronous_commit', CASE WHEN number > 0 THEN 'off' ELSE
                                    current_setting('synchronous_commit') END, true),
           set_config('backend_flush_after', CASE WHEN %(paced)s THEN %(flush)s ELSE
                                             current_setting('backend_flush_after') END, true),
           set_config('lock_timeout', %(lock)s, true), set_config('statement_timeout', %(long)s, true),
           set_config('idle_in_transaction_session_timeout', %(idle)s, true)
    FROM {RANGE} part JOIN {BACKFILL} whole ON whole.id = part.backfill_id
    WHERE part.id = %(range)s AND part.token = %(token)s FOR UPDATE OF part
"""  # noqa: S608

ADVANCE = f"""
    UPDATE {RANGE}
    SET cursor = %(cursor)s, share = %(share)s, rows_done = rows_done + %(rows)s, batches = batches + 1,
        longest_batch = greatest(longest_batch, %(seconds)s),
        leased_until = {LEASED_UNTIL},
        finished_at = CASE WHEN %(share)s >= 1 THEN clock_timestamp() END
    WHERE id = %(range)s
"""  # noqa: S608

RENEW = f"""
    UPDATE {RANGE} part SET leased_until = {LEASED_UNTIL} FROM {BACKFILL} whole
    WHERE part.id = %(range)s AND token = %(token)s AND whole.id = part.backfill_id AND whole.status = 'running'
"""  # noqa: S608

RELEASE = f"UPDATE {RANGE} SET leased_until = NULL WHERE id = %s AND token = %s AND finished_at IS NULL"  # noqa: S608

# https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
CANCEL_VERIFICATION = f"""
    SELECT pg_cancel_backend(backend) FROM {RANGE} WHERE backfill_id = %(backfill)s AND number = 0
    AND finished_at IS NULL AND backend <> pg_backend_pid() AND {HELD} AND EXISTS (
        SELECT FROM pg_stat_activity WHERE pid = backend AND pg_has_role(usesysid, 'USAGE')
    )
"""  # noqa: S608

# The condition on the sweep lets only one of two workers begin the next.
NEXT_SWEEP = f"""
    WITH next AS (
        UPDATE {BACKFILL} whole SET sweep = sweep + 1
        WHERE id = %(backfill)s AND sweep = %(sweep)s AND status = 'running' AND NOT EXISTS (
            SELECT FROM {RANGE} part WHERE part.backfill_id = whole.id AND part.sweep = %(sweep)s
                                           AND part.finished_at IS NULL
        )
        RETURNING id, sweep
    )
    INSERT INTO {RANGE} (backfill_id, sweep, number) SELECT id, sweep, 0 FROM next
"""  # noqa: S608

# A table, the tables that inherit from it, or its partitions
# (https://www.postgresql.org/docs/current/catalog-pg-inherits.html).
LEAVES = """
    SELECT pg_class.* FROM pg_class WHERE oid IN (
        WITH RECURSIVE tree (oid) AS (
            SELECT to_regclass(%(table)s)::oid
            UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
        )
        SELECT oid FROM tree
    ) AND relkind <> 'p'
"""
IS_PART = f"SELECT EXISTS (SELECT FROM ({LEAVES}) AS leaves WHERE oid = to_regclass(%(name)s))"  # noqa: S608
SIZE = "coalesce(pg_relation_size({}) / current_setting('block_size')::int, 0)"
BLOCKS_OF = f"SELECT {SIZE.format('to_regclass(%(table)s)')}"
PARTS = f"""
    SELECT CASE WHEN oid <> to_regclass(%(table)s) THEN oid::regclass::text ELSE '' END,
           {SIZE.format("oid")}, relkind = 'r'
    FROM ({LEAVES}) AS leaves ORDER BY oid::regclass::text
"""  # noqa: S608


class LeaseLost(Exception):
    """Another worker has the range now, or the backfill no longer runs."""


class Part(NamedTuple):
    """A table (``name`` is empty then), a partition or an inheriting table, and its size in blocks.

    ``is_table`` is False for views and foreign tables, which have no blocks.
    """

    name: str
    blocks: int
    is_table: bool


def worker_name() -> str:
    """Return the host, process and thread of this worker, as the table of ranges shows them."""
    return f"{socket.gethostname()}, process {os.getpid()}, thread {threading.get_native_id()}"


def claim(connection: BaseDatabaseWrapper, row: Backfill) -> BackfillRange | None:
    """Claim the first free range; None if there is none now. Waits for no lock (SKIP LOCKED)."""
    values = {"worker": worker_name(), "lease": LEASE, "backfill": row.pk}
    return next(iter(BackfillRange.objects.using(connection.alias).raw(CLAIM, values)), None)


def is_still_ours(connection: BaseDatabaseWrapper, part: BackfillRange, longest: float, *, paced: bool) -> bool:
    """Lock the range until the end of the transaction and set its timeouts; False if the lease is lost.

    Args:
        longest: seconds until a statement is canceled.
        paced: whether others are at work.
    """
    settings = {
        "lock": locks.milliseconds(conf.LOCK_TIMEOUT),
        "long": locks.milliseconds(longest),
        "idle": locks.milliseconds(LEASE),
        "flush": FLUSH_AFTER,
    }
    with connection.cursor() as cursor:
        cursor.execute(FENCE, {"range": part.pk, "token": part.token, "paced": paced, **settings})
        found = cursor.fetchone()
    return bool(found) and found[0] == Backfill.Status.RUNNING


def advance(
    connection: BaseDatabaseWrapper, part: BackfillRange, *, to: Any, share: float, rows: int, seconds: float
) -> None:
    """Record the progress of the range in the batch's transaction; ``share`` 1 finishes it."""
    json = BackfillRange._meta.get_field("cursor").get_db_prep_value(to, connection)
    values = {"cursor": json, "share": share, "rows": rows, "seconds": seconds, "lease": LEASE, "range": part.pk}
    with connection.cursor() as cursor:
        cursor.execute(ADVANCE, values)


def renew(connection: BaseDatabaseWrapper, part: BackfillRange) -> bool:
    """Renew the lease; False if it is lost. Locks the range's row for a moment."""
    with connection.cursor() as cursor:
        cursor.execute(RENEW, {"range": part.pk, "token": part.token, "lease": LEASE})
        return bool(cursor.rowcount)


def release(connection: BaseDatabaseWrapper, part: BackfillRange) -> None:
    """Give the range back."""
    with connection.cursor() as cursor:
        cursor.execute(RELEASE, [part.pk, part.token])


def take_away(row: Backfill) -> str:
    """Take the ranges from their workers; return the name of a worker in a batch, which keeps its range, or nothing.

    Locks the rows of the ranges (FOR UPDATE) for a moment; waits for no lock (SKIP LOCKED).
    """
    alias = row._state.db
    held = row.ranges.using(alias).filter(finished_at=None, leased_until__isnull=False)
    with transaction.atomic(using=alias):
        free = list(held.select_for_update(skip_locked=True).values_list("pk", flat=True))
        row.ranges.using(alias).filter(pk__in=free).update(token=F("token") + 1, leased_until=None)
    return held.values_list("worker", flat=True).first() or ""


def is_running(connection: BaseDatabaseWrapper, row: Backfill) -> bool:
    """Whether the backfill has the status ``running`` in the database now."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT FROM {BACKFILL} WHERE id = %s AND status = 'running'", [row.pk])
        return bool(cursor.rowcount)


def cancel_verification(connection: BaseDatabaseWrapper, row: Backfill) -> None:
    """Cancel the statement that verifies, if there is one and the role may: it takes long."""
    with connection.cursor() as cursor:
        cursor.execute(CANCEL_VERIFICATION, {"backfill": row.pk})


def begin_next_sweep(connection: BaseDatabaseWrapper, row: Backfill) -> None:
    """Begin the next sweep if every range of this one is finished and no other worker has begun it."""
    with connection.cursor() as cursor:
        cursor.execute(NEXT_SWEEP, {"backfill": row.pk, "sweep": row.sweep})


def parts_of(connection: BaseDatabaseWrapper, model: type[Model]) -> list[Part]:
    """Return the table or its partitions, and the tables that inherit from it."""
    name = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(PARTS, {"table": name})
        return [Part(*row) for row in cursor.fetchall()]


def is_part(connection: BaseDatabaseWrapper, model: type[Model], name: str) -> bool:
    """Whether the table still has a partition of that name; the empty name is the table itself."""
    if not name:
        return True
    with connection.cursor() as cursor:
        cursor.execute(IS_PART, {"table": connection.ops.quote_name(model._meta.db_table), "name": name})
        return bool(cursor.fetchone()[0])


def blocks_of(connection: BaseDatabaseWrapper, model: type[Model], partition: str = "") -> int:
    """Return the size of the table or the partition in blocks."""
    name = partition or connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(BLOCKS_OF, {"table": name})
        return int(cursor.fetchone()[0])


def cut_by_blocks(parts: list[Part], *, striped: bool) -> list[dict[str, Any]]:
    """Return the ranges of a sweep in physical order, partition by partition.

    With more ranges the workers end at about the same time; but ranges cut batches short, which costs more in stripes.
    """
    whole = sum(part.blocks for part in parts)
    most = BLOCKS if striped else min(BLOCKS, max(FEWEST, whole // RANGES))
    step = max(most, whole // MOST_RANGES)
    return [
        {"partition": part.name, "lower": start, "upper": min(start + step, part.blocks)}
        for part in parts
        for start in range(0, part.blocks, step)
    ]


def cut_by_keys(connection: BaseDatabaseWrapper, model: type[Model], parts: list[Part]) -> list[dict[str, Any]]:
    """Return ranges that together hold every key and about the same number of rows each.

    A sample of the table gives the bounds. A table that cannot be sampled is one range.
    """
    blocks = sum(part.blocks for part in parts)
    count = min(MOST_RANGES, blocks // BLOCKS + 1)
    if count == 1 or not all(part.is_table for part in parts):
        return [{"lower": None, "upper": None}]
    names = [connection.ops.quote_name(field.column) for field in key_fields(model)]
    table = connection.ops.quote_name(model._meta.db_table)
    # Qualified: the bare name would be the selected text, which sorts 10 before 9.
    columns, texts = ", ".join(f"{table}.{name}" for name in names), ", ".join(f"{name}::text" for name in names)
    percent = min(100.0, 100.0 * SAMPLE / max(1, blocks * 50))
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {texts} FROM {table} TABLESAMPLE SYSTEM ({percent}) ORDER BY {columns}")  # noqa: S608
        sample = cursor.fetchall()
    inner = [list(sample[len(sample) * place // count]) for place in range(1, count)] if sample else []
    bounds = [None, *(bound for place, bound in enumerate(inner) if bound not in inner[:place]), None]
    return [{"lower": lower, "upper": upper} for lower, upper in itertools.pairwise(bounds)]


def key_fields(model: type[Model]) -> list[Any]:
    """Return the fields of the primary key; several if it is composite."""
    return list(getattr(model._meta, "pk_fields", None) or [model._meta.pk])
