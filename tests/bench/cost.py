"""What does ``migrate`` cost the one who waits for it, with nothing to do and from zero, beside stock Django's?"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.bench.contenders import OURS, STOCK, Contender, database, migrate
from tests.bench.synthetic import write_project

NO_OPS = 3  # in each round: they are short

Times = dict[str, list[float]]


def run(options: argparse.Namespace) -> None:
    """Print the median times of stock Django and of ours at each size, and how ours compares."""
    print(f"\nTime of a whole migrate process: medians of {options.rounds} rounds, in which the two take turns\n")
    print(f"{'migrations':>10}  {'':12}{'stock':>10}{'ours':>10}{'ratio':>8}")
    for size in options.sizes:
        from_zero, no_op = measure(size, options.rounds)
        for what, times in (("from zero", from_zero), ("nothing new", no_op)):
            stock, ours = (median(times[who.name]) for who in (STOCK, OURS))
            print(f"{size:>10,}  {what:12}{stock:>8.2f} s{ours:>8.2f} s{ours / stock:>8.2f}", flush=True)


def measure(size: int, rounds: int) -> tuple[Times, Times]:
    """Time a generated project from zero and with nothing to do, in turns."""
    from_zero: Times = {STOCK.name: [], OURS.name: []}
    no_op: Times = {STOCK.name: [], OURS.name: []}
    with TemporaryDirectory() as name:
        folder = Path(name)
        apps = write_project(folder, size)

        def timed(who: Contender, database: str, *arguments: str) -> float:
            ended = migrate(who, database, *arguments, folder=folder, apps=apps)
            if ended.error:
                raise SystemExit(f"migrate of {who.name} failed at {size} migrations: {ended.error}")
            return ended.seconds

        for _ in range(rounds):
            with ExitStack() as stack:
                databases = [(who, stack.enter_context(database())) for who in (STOCK, OURS)]
                for who, there in databases:
                    timed(who, there, "--plan")  # compiles what is imported, and reads it from the disk
                for who, there in databases:
                    from_zero[who.name].append(timed(who, there))
                for who, there in databases * NO_OPS:
                    no_op[who.name].append(timed(who, there))
    return from_zero, no_op
