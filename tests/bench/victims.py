"""How long do a reader and a writer stall while their table is migrated and somebody else keeps a lock on it?"""

import argparse
from importlib import metadata
from typing import NamedTuple

from gotong_royong.zero_downtime.exceptions import BlockedTooLong
from tests.bench.contenders import CONTENDERS, OURS, STOCK, Contender, Ended, database, migrate, server, succeed
from tests.bench.shop.trials import TRIALS
from tests.zero_downtime.load import holding, load

APPS = ["tests.bench.shop"]

FILL = (
    "INSERT INTO customers SELECT FROM generate_series(1, greatest({rows} / 10, 1))",
    """
    INSERT INTO orders (customer_id, amount, note, legacy, paid)
    SELECT 1 + i % greatest({rows} / 10, 1), i % 1000, repeat(md5(i::text), 3), md5(i::text), false
    FROM generate_series(1, {rows}) i
    """,
    "VACUUM ANALYZE",
)
PEER_PACKAGE = "django-pg-zero-downtime-migrations"
READ = "SELECT paid FROM orders WHERE id = 1"
WRITE = "UPDATE orders SET paid = NOT paid WHERE id = 1"

OUTCOMES = {  # what stands in an error: what that means
    "lock timeout": "gave up: lock timeout",
    "statement timeout": "gave up: statement timeout",
    "UnsafeOperationException": "refused as unsafe",
    BlockedTooLong.__name__: "stopped by its watchdog",
}


class Seen(NamedTuple):
    reader: float
    writer: float
    ended: Ended

    @property
    def outcome(self) -> str:
        error = self.ended.error
        return next((words for sign, words in OUTCOMES.items() if sign in error), "failed" if error else "applied")


ROWS = 1_000_000


def run(options: argparse.Namespace) -> None:
    """Print for each trial and contender the longest stalls, the time of the process and the outcome."""
    rows = options.rows[0] if options.rows else ROWS
    print(
        f"\nLongest stall of a reader and a writer of a table of {rows:,} rows under migration,\n"
        f"while a third session idles for {options.hold:g} s in a transaction that has read it\n"
        "(their commits do not wait for the disk, so that a stall is a lock's).\n"
        f"The peer is {PEER_PACKAGE} {metadata.version(PEER_PACKAGE)} with its recommended settings.\n"
    )
    print(f"{'':28}{'':7}{'reader':>10}{'writer':>10}{'migrate':>10}  outcome")
    errors = []
    with database() as filled:
        succeed(migrate(OURS, filled, "shop", "0001", apps=APPS, trial=next(iter(TRIALS))))
        server().execute(filled, *(statement.format(rows=rows) for statement in FILL))
        for trial in options.trials:
            for contender in CONTENDERS.values():
                seen = watch(contender, trial, filled, options.hold)
                label = trial if contender is STOCK else ""
                stalls = f"{seen.reader * 1000:>7,.0f} ms{seen.writer * 1000:>7,.0f} ms"
                print(f"{label:28}{contender.name:7}{stalls}{seen.ended.seconds:>8.1f} s  {seen.outcome}", flush=True)
                if seen.ended.error:
                    errors.append(f"  {contender.name}, {trial}: {seen.ended.error}")
    if errors:
        print("\nWhat those said that did not apply it:", *errors, sep="\n")


def watch(contender: Contender, trial: str, template: str, hold: float) -> Seen:
    """Migrate a copy of the database while others use it."""
    with database(template) as name:
        server().execute(name, "CHECKPOINT")
        there = {**server().conninfo(name), "options": "-c synchronous_commit=off"}
        with load(there, READ, WRITE) as victims, holding(there, READ, hold):
            ended = migrate(contender, name, "shop", apps=APPS, trial=trial)
        reader, writer = (victim.longest for victim in victims)
        return Seen(reader, writer, ended)
