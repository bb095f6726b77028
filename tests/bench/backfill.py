"""How long does a backfill take, and how much larger does it leave the table, beside the other ways to do the same?"""

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from tests.bench.contenders import database, server

NAME = "accounts.populate_markov_user_ids"
BATCH = 1_000  # rows, of the ways that have a fixed size
ROWS = [250_000, 1_000_000, 2_000_000]
RATE = 200  # transactions a second, of others
MAX_WAL_SIZE = "1GB"  # as PostgreSQL has it by default
WARM_UP, UNDISTURBED = 2.0, 2.0  # seconds; the latter at least, and as long as one UPDATE takes
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
READ = "SELECT * FROM users WHERE username = 'user' || :row"
WRITE = "UPDATE users SET password_hash = password_hash WHERE username = 'user' || :row"
LOOK = """
    SELECT pg_total_relation_size('users')::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8,
           (SELECT count(*) FROM users WHERE markov_user_id IS NULL)
"""


T = TypeVar("T")
Way = Callable[[Any], float]
"""Fills the column, and returns how many seconds the longest transaction of it took."""


class Seen(NamedTuple):
    seconds: float
    longest: float
    growth: float
    wal: float
    undone: int


def one_update(connection: Any) -> float:
    return timed(connection.cursor().execute, ONE_UPDATE)


def django_loop(connection: Any) -> float:
    from accounts.models import User

    users, changed, longest = User.objects.using(connection.alias).filter(markov_user_id=None).only("pk"), [], 0.0
    for user in users.iterator(BATCH):
        user.markov_user_id = f"gotong_royong:{user.pk}"
        changed.append(user)
        if len(changed) == BATCH:
            longest = max(longest, timed(users.bulk_update, changed, ["markov_user_id"]))
            changed.clear()
    users.bulk_update(changed, ["markov_user_id"])
    return longest


def limited(connection: Any) -> float:
    longest = 0.0
    with connection.cursor() as cursor:
        while cursor.rowcount:
            longest = max(longest, timed(cursor.execute, LIMITED))
    return longest


def keyset(connection: Any) -> float:
    key, longest = "00000000-0000-0000-0000-000000000000", 0.0
    with connection.cursor() as cursor:
        while key:
            longest = max(longest, timed(cursor.execute, KEYSET, [key]))
            key = cursor.fetchone()[0]
    return longest


def timed(action: Callable[..., Any], *arguments: Any) -> float:
    started = time.monotonic()
    action(*arguments)
    return time.monotonic() - started


def ours(workers: int, *, at_full_speed: bool = True) -> Way:
    def run(connection: Any) -> float:
        from gotong_royong.zero_downtime.backfills import control, pool

        row = pool.run(NAME, connection.alias, workers=workers, at_full_speed=at_full_speed)
        return control.progress(row).longest_batch

    return run


NOTHING, REFERENCE = "nothing", "one UPDATE"
WAYS: dict[str, Way] = {
    REFERENCE: one_update,
    "iterator and bulk_update": django_loop,
    "IN (SELECT ... LIMIT 1000)": limited,
    "keyset by primary key, 1000": keyset,
    "backfill run --full-speed": ours(1),
    "  with --workers 2": ours(2),
}
AMONG_OTHERS: dict[str, Way | None] = {NOTHING: None, **WAYS, "backfill run": ours(1, at_full_speed=False)}


def run(options: argparse.Namespace) -> None:
    """Print for each way what it takes and leaves behind, alone and while others use the same table."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gotong_royong.settings")
    django.setup()
    from django.core.management import call_command

    for rows in options.rows or ROWS:
        with database() as filled:
            with connected(filled) as connection:
                call_command("migrate", database=connection.alias, verbosity=0)
            server().execute(filled, *(statement.format(rows=rows) for statement in FILL))
            left_out = () if rows <= LOOP_UP_TO else (django_loop,)
            alone(filled, rows, options.rounds, chosen(WAYS, options.ways, left_out))
            among_others(filled, rows, options.rounds, chosen(AMONG_OTHERS, options.ways, left_out))


def chosen(ways: Mapping[str, T], labels: list[str], left_out: Sequence[Way]) -> dict[str, T]:
    labels = [NOTHING, REFERENCE, *labels]
    return {label: way for label, way in ways.items() if label in labels and way not in left_out}


def alone(filled: str, rows: int, rounds: int, ways: dict[str, Way]) -> None:
    print(
        f"\nFilling a new column of {rows:,} users, alone on the database: medians of {rounds} rounds.\n"
        "Compared with one UPDATE that finds the index there, and with one before the index is built.\n"
    )
    print(f"{'':30}{'time':>9}{'ratio':>8}{'ratio':>8}{'batch':>9}{'grows':>8}{'WAL':>10}{'undone':>8}")
    seen: dict[tuple[bool, str], list[Seen]] = {}
    for _ in range(rounds):
        for indexed in (True, False):
            for label, way in ways.items():
                seen.setdefault((indexed, label), []).append(measure(filled, way, indexed=indexed))
    references = [median(one.seconds for one in seen[indexed, REFERENCE]) for indexed in (True, False)]
    for indexed in (True, False):
        print("its index is there" if indexed else "its index is built afterwards, in the time")
        for (there, label), each in seen.items():
            if there is indexed:
                seconds, longest, growth, wal, undone = (median(values) for values in zip(*each, strict=True))
                ratios = "".join(f"{seconds / reference:>8.2f}" for reference in references)
                figures = f"{longest:>7.2f} s{growth:>7.2f}x{wal / 1e6:>7,.0f} MB{undone:>8.0f}"
                print(f"  {label:28}{seconds:>7.1f} s{ratios}{figures}", flush=True)


def among_others(filled: str, rows: int, rounds: int, ways: dict[str, Way | None]) -> None:
    if not (program := pgbench()):
        print("\nLeft out, for there is no program pgbench: what others see of it.")
        return
    print(
        f"\nThe same while pgbench reads and writes single ones of {rows:,} users, {RATE} times a second:\n"
        f"medians of {rounds} rounds. The index is there. How long that takes: half of them at most, of a hundred all "
        "but one, all.\n"
    )
    print(f"{'':30}{'time':>9}{'ratio':>8}{'median':>12}{'99th':>12}{'longest':>12}{'undone':>9}")
    seen: dict[str, list[tuple[float, ...]]] = {label: [] for label in ways}
    with recycling():
        for _ in range(rounds):
            reference = measure(filled, one_update, indexed=True).seconds
            for label, way in ways.items():
                way = way or partial(rest, max(reference, UNDISTURBED))
                seconds, times, undone = beside(program, filled, rows, way)
                places = [times[int(len(times) * place)] for place in (0.5, 0.99, 1 - 1e-9)]
                seen[label].append((seconds, seconds / reference, *places, undone))
    for label, each in seen.items():
        seconds, ratio, *waits, undone = (median(values) for values in zip(*each, strict=True))
        figures = "".join(f"{milliseconds:>9,.1f} ms" for milliseconds in waits)
        print(f"  {label:28}{seconds:>7.1f} s{ratio:>8.2f}{figures}{undone:>9.0f}", flush=True)


def beside(program: str, filled: str, rows: int, way: Callable[[Any], object]) -> tuple[float, "Times", int]:
    """Fill the column while others use the table; return the seconds, theirs, and how many rows are left."""
    with database(filled) as name, connected(name) as connection:
        server().execute(name, INDEX, "CHECKPOINT")
        with others(program, name, rows) as times:
            time.sleep(WARM_UP)
            times.clear()
            seconds = timed(way, connection)
        with connection.cursor() as cursor:
            cursor.execute(LOOK)
            return seconds, times, cursor.fetchone()[-1]


def rest(seconds: float, _: Any) -> None:
    time.sleep(seconds)


@contextmanager
def recycling() -> Iterator[None]:
    """Let the server keep the WAL files that it has, as one keeps them that is always at work.

    Otherwise what writes most has to make new ones, and nobody can commit for the 50 ms that one takes
    (https://www.postgresql.org/docs/current/wal-configuration.html).
    """
    home = server().settings["NAME"]
    server().execute(home, f"ALTER SYSTEM SET min_wal_size = '{MAX_WAL_SIZE}'", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        server().execute(home, "ALTER SYSTEM RESET min_wal_size", "SELECT pg_reload_conf()")


def measure(template: str, way: Way, *, indexed: bool) -> Seen:
    with database(template) as name, connected(name) as connection, connection.cursor() as cursor:
        if indexed:
            cursor.execute(INDEX)
        cursor.execute("CHECKPOINT")
        cursor.execute(LOOK)
        size, wal, _ = cursor.fetchone()
        started = time.monotonic()
        longest = way(connection)
        if not indexed:
            cursor.execute(INDEX)
        seconds = time.monotonic() - started
        cursor.execute(LOOK)
        after, wal_after, undone = cursor.fetchone()
        return Seen(seconds, longest, after / size, wal_after - wal, undone)


def pgbench() -> str | None:
    from gotong_royong.embedded import binaries

    return shutil.which("pgbench") or shutil.which("pgbench", path=str(binaries()))


class Times(list[float]):
    """The milliseconds that others took, the shortest first, once they have stopped."""

    def clear(self) -> None:
        self.since = time.time()


@contextmanager
def others(program: str, name: str, rows: int) -> Iterator[Times]:
    """Let pgbench use the table; what it logs are the times from when a transaction was due."""
    known, times = server().conninfo(name), Times()
    environment = {f"PG{key.upper()}": str(value) for key, value in known.items() if key != "dbname"}
    with TemporaryDirectory() as folder:
        for kind, text in (("read", READ), ("write", WRITE)):
            Path(folder, kind).write_text(f"\\set row random(1, {rows})\n{text};\n")
        command = [program, "-n", "-c", "4", "-R", f"{RATE}", "-T", "86400", "-l", "-f", "read", "-f", "write", name]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield times
            time.sleep(WARM_UP)  # until what it holds back is written
        finally:
            process.terminate()
            process.wait()
        for file in Path(folder).glob("pgbench_log.*"):
            for line in file.read_text().splitlines()[:-1]:
                _, _, took, _, seconds, microseconds, *_ = map(int, line.split())
                if seconds + microseconds / 1e6 > times.since:
                    times.append(took / 1000)
        times.sort()


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
