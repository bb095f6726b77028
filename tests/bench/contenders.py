"""Who is compared, and how does each run ``migrate`` or its linter, in a process and on a database of its own?"""

import json
import os
import re
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

PROJECT = Path(__file__).resolve().parents[2]
ERROR = re.compile(r"^[\w.]+: .*", re.MULTILINE)  # after a traceback or without one


class Contender(NamedTuple):
    name: str
    engine: str = "django.db.backends.postgresql"
    apps: tuple[str, ...] = ()
    settings: dict[str, Any] = {}


STOCK = Contender("stock")
OURS = Contender("ours", apps=("gotong_royong.zero_downtime",))
PEER = Contender(  # django-pg-zero-downtime-migrations
    "peer",
    engine="django_zero_downtime_migrations.backends.postgres",
    settings={  # what its README calls the most safe ones
        "ZERO_DOWNTIME_MIGRATIONS_LOCK_TIMEOUT": "2s",
        "ZERO_DOWNTIME_MIGRATIONS_STATEMENT_TIMEOUT": "2s",
        "ZERO_DOWNTIME_MIGRATIONS_FLEXIBLE_STATEMENT_TIMEOUT": True,
        "ZERO_DOWNTIME_MIGRATIONS_RAISE_FOR_UNSAFE": True,
    },
)
LINTER = Contender("django-migration-linter", apps=("django_migration_linter",))
CONTENDERS = {contender.name: contender for contender in (STOCK, PEER, OURS, LINTER)}


class Server(NamedTuple):
    """Where the databases are made: the server of DATABASE_URL, or the embedded one."""

    settings: dict[str, Any]
    version: str

    def conninfo(self, database: str) -> dict[str, Any]:
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        known = {name: self.settings[key] for name, key in names.items() if self.settings.get(key)}
        return {**self.settings.get("OPTIONS", {}), **known, "dbname": database}

    def execute(self, database: str, *statements: str) -> None:
        with psycopg.connect(**self.conninfo(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


@cache
def server() -> Server:
    from gotong_royong.settings import DATABASES

    found = Server(DATABASES["default"], "")
    with psycopg.connect(**found.conninfo(found.settings["NAME"])) as connection:
        return found._replace(version=connection.execute("SHOW server_version").fetchone()[0].split()[0])


@contextmanager
def database(template: str = "template1") -> Iterator[str]:
    """Make a database like ``template`` and yield its name; drop it at the end."""
    home, name = server().settings["NAME"], f"bench_{uuid.uuid4().hex[:12]}"
    server().execute(home, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield name
    finally:
        server().execute(home, f"DROP DATABASE {name} WITH (FORCE)")


class Ended(NamedTuple):
    """How a ``migrate`` ended: after how many seconds, of which the processor worked for it, and with which error."""

    seconds: float
    cpu: float
    error: str


def migrate(
    who: Contender, database: str, *arguments: str, command: str = "migrate", folder: Path = PROJECT, **asked: Any
) -> Ended:
    """Run the command as ``manage.py migrate`` does.

    Args:
        command: another one than migrate.
        folder: where the apps are imported from.
        asked: what tests.bench.settings reads: ``apps``, and ``trial`` for tests.bench.shop.
    """
    told = {"contender": who.name, "database": {**server().settings, "NAME": database}, **asked}
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.bench.settings",
        "BENCH": json.dumps(told),
        "PYTHONPATH": f"{folder}",
        "PYTHONDONTWRITEBYTECODE": "",  # a deploy has its code compiled
    }
    cpu, started = _cpu_of_children(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "django", command, *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, cpu = time.monotonic() - started, _cpu_of_children() - cpu
    errors = ERROR.findall(done.stderr) or [f"exit code {done.returncode}"]
    return Ended(seconds, cpu, errors[-1] if done.returncode else "")


def succeed(ended: Ended) -> Ended:
    """Return how it ended, if that was well; otherwise end the benchmark."""
    if ended.error:
        sys.exit(f"Error: a migrate failed that the benchmark needs. {ended.error}")
    return ended


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
