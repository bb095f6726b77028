"""How long does a backfill take, and how much larger does it leave the table, beside the other ways to do the same?"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.bench.contenders import database, server

NAME = "accounts.populate_markov_user_ids"
BATCH = 1_000  # rows, of the ways that have a fixed size
LOOP_UP_TO = 250_000  # rows: Django's loop takes ten times as long as the others

FILL = (
    "TRUNCATE zero_downtime_backfill CASCADE",
    "ALTER TABLE users DISABLE TRIGGER assign_markov_user_id",
    "ALTER TABLE users DROP CONSTRAINT idx_users_markov_id",
    """
    INSERT INTO users (username, email, password_hash)
    SELECT 'user' || i, 'user' || i || '@example.org', repeat('x', 100) FROM generate_series(1, {rows}) i
    """,
    "VACUUM ANALYZE users",
)
INDEX = "ALTER TABLE users ADD CONSTRAINT idx_users_markov_id UNIQUE (markov_user_id)"
ONE_UPDATE = "UPDATE users SET markov_user_id = 'gotong_royong:' || id WHERE markov_user_id IS NULL"
LIMITED = f"{ONE_UPDATE} AND id IN (SELECT id FROM users WHERE markov_user_id IS NULL LIMIT {BATCH})"
KEYSET = f"""
    WITH batch AS (SELECT id FROM users WHERE id > %s ORDER BY id LIMIT {BATCH}),
    done AS ({ONE_UPDATE} AND id IN (SELECT id FROM batch))
    SELECT max(id::text) FROM batch
"""
LOOK = """
    SELECT pg_total_relation_size('users')::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
           (SELECT count(*) FROM users WHERE markov_user_id IS NULL)
"""


class Seen(NamedTuple):
    seconds: float
    growth: float
    wal: float
    undone: int


def one_update(connection: Any) -> None:
    connection.cursor().execute(ONE_UPDATE)


def django_loop(connection: Any) -> None:
    from accounts.models import User

    users, changed = User.objects.using(connection.alias).filter(markov_user_id=None).only("pk"), []
    for user in users.iterator(BATCH):
        user.markov_user_id = f"gotong_royong:{user.pk}"
        changed.append(user)
        if len(changed) == BATCH:
            User.objects.using(connection.alias).bulk_update(changed, ["markov_user_id"])
            changed.clear()
    User.objects.using(connection.alias).bulk_update(changed, ["markov_user_id"])


def limited(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(LIMITED)
        while cursor.rowcount:
            cursor.execute(LIMITED)


def keyset(connection: Any) -> None:
    key = "00000000-0000-0000-0000-000000000000"
    with connection.cursor() as cursor:
        while key:
            cursor.execute(KEYSET, [key])
            key = cursor.fetchone()[0]


def ours(workers: int) -> Callable[[Any], None]:
    def run(connection: Any) -> None:
        from gotong_royong.zero_downtime.backfills import crew

        crew.run(NAME, connection.alias, workers=workers, at_full_speed=True)

    return run


WAYS = {
    "one UPDATE": one_update,
    "iterator and bulk_update": django_loop,
    "IN (SELECT ... LIMIT 1000)": limited,
    "keyset by primary key, 1000": keyset,
    "backfill run": ours(1),
    "backfill run --workers 2": ours(2),
}


def run(options: argparse.Namespace) -> None:
    """Print for each way its time, the ratio to one UPDATE, how the table with its indexes grew, and the WAL."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gotong_royong.settings")
    django.setup()
    from django.core.management import call_command

    print(f"\nFilling a new column of {options.rows:,} users, at full speed and alone on the database.\n")
    print(f"{'':30}{'time':>10}{'ratio':>8}{'grows':>8}{'WAL':>10}{'undone':>8}")
    with database() as filled:
        with connected(filled) as connection:
            call_command("migrate", database=connection.alias, verbosity=0)
        server().execute(filled, *(statement.format(rows=options.rows) for statement in FILL))
        for indexed in (True, False):
            print("its index is there" if indexed else "its index is built afterwards, in the time")
            first = 0.0
            for label, way in WAYS.items():
                if way is django_loop and options.rows > LOOP_UP_TO:
                    continue
                seen = measure(filled, way, indexed=indexed)
                first = first or seen.seconds
                ratio, wal = seen.seconds / first, seen.wal / 1e6
                figures = f"{seen.seconds:>8.1f} s{ratio:>8.2f}{seen.growth:>7.2f}x{wal:>7,.0f} MB{seen.undone:>8}"
                print(f"  {label:28}{figures}", flush=True)


def measure(template: str, way: Callable[[Any], None], *, indexed: bool) -> Seen:
    with database(template) as name, connected(name) as connection, connection.cursor() as cursor:
        if indexed:
            cursor.execute(INDEX)
        cursor.execute("CHECKPOINT")
        cursor.execute(LOOK)
        size, wal, _ = cursor.fetchone()
        started = time.monotonic()
        way(connection)
        if not indexed:
            cursor.execute(INDEX)
        seconds = time.monotonic() - started
        cursor.execute(LOOK)
        after, wal_after, undone = cursor.fetchone()
        return Seen(seconds, after / size, wal_after - wal, undone)


@contextmanager
def connected(name: str) -> Iterator[Any]:
    """Yield Django's connection to the database, under an alias of that name."""
    from django.db import connections

    connections.databases[name] = {**connections.databases["default"], "NAME": name}
    try:
        yield connections[name]
    finally:
        connections[name].close()
        del connections[name], connections.databases[name]
