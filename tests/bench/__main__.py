"""The benchmark's command line: which parts, and how large."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable

os.environ.setdefault("DEBUG", "1")  # no secret key is needed: nothing is served

import django
import psycopg
from django.core.exceptions import ImproperlyConfigured

from tests.bench import backfill, cost, linting, victims
from tests.bench.backfill import AMONG_OTHERS, WAYS
from tests.bench.contenders import server
from tests.bench.shop.trials import TRIALS

PARTS = {"victims": victims.run, "cost": cost.run, "linting": linting.run, "backfill": backfill.run}


def number(text: str) -> int:
    if (value := int(text.replace("_", ""))) < 1:
        raise ValueError
    return value


def numbers(text: str) -> list[int]:
    return [number(part) for part in text.split(",")]


def parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    return names


def with_words(kind: str, names: Iterable[str]) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        if found := [name for name in names if any(word in name for word in text.split(","))]:
            return found
        raise argparse.ArgumentTypeError(f"no {kind} has {text} in its name: choose from {', '.join(names)}")

    return chosen


def main() -> None:
    ways = list(dict.fromkeys([*WAYS, *AMONG_OTHERS]))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--parts", type=parts, default=list(PARTS), help=f"default: {','.join(PARTS)}")
    parser.add_argument("--rows", type=numbers, help="victims (default: 1000000), backfill (250000,1000000,2000000)")
    parser.add_argument(
        "--trials", type=with_words("trial", TRIALS), default=list(TRIALS), help="victims: those with such words"
    )
    parser.add_argument("--hold", type=float, default=3, help="victims: seconds that a reader idles in its transaction")
    parser.add_argument("--ways", type=with_words("way", ways), default=ways, help="backfill: those with such words")
    parser.add_argument("--sizes", type=numbers, default=[100, 300, 1000], help="cost, linting: numbers of migrations")
    parser.add_argument("--rounds", type=number, default=3, help="cost, linting: how often each is timed (default: 3)")
    options = parser.parse_args()
    try:
        version = server().version
    except (ImproperlyConfigured, psycopg.OperationalError) as error:
        sys.exit(f"Error: no server to make the databases on. {' '.join(str(error).split())}")
    print(
        f"Python {platform.python_version()}, Django {django.__version__}, PostgreSQL {version}, {os.cpu_count()} cores"
    )
    try:
        for part in options.parts:
            PARTS[part](options)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
