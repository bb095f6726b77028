"""What does ``migrate`` cost the one who waits for it, with nothing to do and from zero, beside stock Django's?"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.bench.contenders import OURS, STOCK, Contender, Ended, database, migrate, succeed
from tests.bench.synthetic import write_project

NO_OPS = 3  # in each round: they are short

Databases = list[tuple[Contender, str]]
Runs = list[tuple[Ended, Ended]]  # stock's and ours, one right after the other


def run(options: argparse.Namespace) -> None:
    """Print the median times of stock Django and of ours at each size, and how ours compares."""
    print(
        f"\nTime of a whole migrate process: medians of {options.rounds} rounds, in which the two take turns.\n"
        "Its processor time, without the server's, says more where the machine has other things to do.\n"
    )
    print(f"{'migrations':>10}  {'':12}{'stock':>10}{'ours':>10}{'ratio':>8}{'CPU: stock':>14}{'ours':>10}{'ratio':>8}")
    for size in options.sizes:
        from_zero, no_op = measure(size, options.rounds)
        for what, runs in (("from zero", from_zero), ("nothing new", no_op)):
            seconds = compared([(stock.seconds, ours.seconds) for stock, ours in runs])
            cpu = compared([(stock.cpu, ours.cpu) for stock, ours in runs])
            print(f"{size:>10,}  {what:12}{seconds}    {cpu}", flush=True)


def compared(pairs: list[tuple[float, float]]) -> str:
    stock, ours = (median(times) for times in zip(*pairs, strict=True))
    return f"{stock:>8.2f} s{ours:>8.2f} s{ours / stock:>8.2f}"


def measure(size: int, rounds: int) -> tuple[Runs, Runs]:
    """Time a generated project from zero and with nothing to do."""
    from_zero: Runs = []
    no_op: Runs = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        apps = write_project(folder, size)

        def both(databases: Databases, *arguments: str) -> tuple[Ended, Ended]:
            stock, ours = (
                succeed(migrate(who, there, *arguments, folder=folder, apps=apps)) for who, there in databases
            )
            return stock, ours

        for _ in range(rounds):
            with ExitStack() as stack:
                databases = [(who, stack.enter_context(database())) for who in (STOCK, OURS)]
                both(databases, "--plan")  # compiles what is imported, and reads it from the disk
                from_zero.append(both(databases))
                no_op += [both(databases) for _ in range(NO_OPS)]
    return from_zero, no_op
