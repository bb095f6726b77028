"""How long does a linter take to judge all migrations, and what is changed, beside ``migrate`` from zero and a peer?"""

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests import memory
from tests.bench.contenders import LINTER, OURS, STOCK, Contender, Ended, database, migrate, succeed
from tests.bench.synthetic import write_project

JUDGED = re.compile(r" migrations?, |exit code 1$")  # with violations, both end with an error status


def run(options: argparse.Namespace) -> None:
    """Print the median times of each size; for the one new migration, what all others lead to is known already."""
    print(
        f"\nTime to judge migrations: medians of {options.rounds} rounds, in which all take turns. Ours runs each\n"
        "up and down in a scratch database; django-migration-linter, the other, reads the SQL.\n"
    )
    print(f"{'migrations':>10}{'migrate':>12}{'ours':>12}{'ours, one new':>15}{'the other':>12}{'ours/migrate':>14}")
    for size in options.sizes:
        with without_a_cache():
            measure(1)  # makes the data folder of the linter's server
            rounds = [measure(size) for _ in range(options.rounds)]
        stock, ours, one, other = (median(times) for times in zip(*rounds, strict=True))
        print(
            f"{size:>10,}{stock:>10.2f} s{ours:>10.2f} s{one:>13.2f} s{other:>10.2f} s{ours / stock:>14.2f}", flush=True
        )


def measure(size: int) -> tuple[float, float, float, float]:
    """Return the seconds of stock's migrate, of our linter on all and on one new migration, and of the peer."""
    with TemporaryDirectory() as name, database() as migrated, database() as empty:
        folder = Path(name)
        apps = write_project(folder, size)
        last = sorted(path.stem for path in (folder / apps[-1] / "migrations").glob("0*.py"))[-2:]

        def lint(who: Contender, where: str, *arguments: str) -> Ended:
            return judged(migrate(who, where, *arguments, command="lintmigrations", folder=folder, apps=apps))

        stock = succeed(migrate(STOCK, migrated, folder=folder, apps=apps))
        ours, other = lint(OURS, empty, "--all"), lint(LINTER, empty, "--no-cache")
        succeed(migrate(STOCK, migrated, apps[-1], last[0] if len(last) > 1 else "zero", folder=folder, apps=apps))
        lint(OURS, migrated, "--unapplied")
        one = lint(OURS, migrated, "--unapplied")
        return stock.seconds, ours.seconds, one.seconds, other.seconds


def judged(ended: Ended) -> Ended:
    """Return how it ended, if that was with a judgement: both linters then end with an error, too."""
    return succeed(ended._replace(error="") if JUDGED.search(ended.error) else ended)


@contextmanager
def without_a_cache() -> Iterator[None]:
    """Let our linter keep its server in a folder of its own meanwhile, as fast as the one that the others use."""
    before, folder = dict(os.environ), memory.temporary("lint-")
    os.environ["XDG_CACHE_HOME"] = f"{folder}"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder)
