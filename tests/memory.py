"""Where do the tests keep what nobody needs after them? In memory, where there is enough of it."""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

MEMORY = Path("/dev/shm")  # noqa: S108
ENOUGH = 2**32  # bytes
PREFIX = "gotong-royong-tests-"
# A crash of the machine takes the data with it anyhow.
CARELESS = ("fsync", "full_page_writes")


def temporary(prefix: str) -> Path:
    """Make a temporary folder, which the caller removes: in memory, unless that is short of four gigabytes."""
    quick = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if quick else None)).resolve()


def folder_of_a_server() -> Path:
    """Make a folder for the embedded server of this process and its children; the end of the process removes it.

    What a killed run has left is removed, too: its server has ended, or nobody uses it.
    """
    made = temporary(PREFIX)
    made.chmod(0o755)  # for whoever the server, or a pool before it, runs as
    for left in made.parent.glob(f"{PREFIX}*/*.users"):
        with suppress(OSError), left.open("a") as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent)
    atexit.register(_remove, made, os.getpid())
    return made


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and no fork of it
        shutil.rmtree(folder, ignore_errors=True)


def be_careless(entry: dict[str, Any]) -> None:
    """Let a server keep its data less safe and change it faster; ``entry`` is one of Django's DATABASES."""
    place = {name: entry[name.upper()] for name in ("host", "port", "user")}
    with psycopg.connect(**place, dbname=entry["NAME"], autocommit=True) as connection:
        for setting in CARELESS:
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")
