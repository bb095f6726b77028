"""How is the database saved before a run?

pg_dump writes it into a file, and pg_restore verifies the file by listing it. The file holds this one database, without
the server's roles and settings. ``pg_restore --clean --if-exists --dbname=…`` restores it.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.conninfo import make_conninfo

from ..conf import conf
from ..exceptions import BackupFailed
from ..postgres import locks
from .watchdog import Report

NOT_IN_NAMES = re.compile(r"[^\w.-]")
REPORT_EVERY = 5.0  # seconds
JUST_MADE = 60.0  # seconds that a new file may be empty and not yet locked

ADVICE = {
    "No space left": "Free some space in the folder, or name another one.",
    "version mismatch": "Set ZERO_DOWNTIME_POSTGRESQL_PROGRAMS to the folder of programs as new as the server.",
    "permission denied for": "Migrate as a user who may read everything (GRANT pg_read_all_data TO …).",
    "statement timeout": "End the session that holds the table, or raise ZERO_DOWNTIME_PATIENCE.",
}


def take(connection: BaseDatabaseWrapper, folder: str | Path, report: Report) -> Path:
    """Dump the database into ``<folder>/<database>_<UTC timestamp>.dump``, which only its owner may read.

    The file ends in ``.part`` until it is complete, flushed and verified, and is removed after a failure. Files that
    killed processes left of this database are removed first. pg_dump takes ACCESS SHARE on every table as long as it
    runs, and waits for that for PATIENCE at most (https://www.postgresql.org/docs/current/app-pgdump.html).

    Args:
        report: called every few seconds with the progress, and at the end with the result.

    Returns:
        The absolute path of the file.

    Raises:
        BackupFailed: with the reason, and what to do.
    """
    started = time.monotonic()
    dump, restore = _program("pg_dump"), _program("pg_restore")
    connection.ensure_connection()
    database = connection.connection.info.dbname
    folder, stem = Path(folder).expanduser().resolve(), NOT_IN_NAMES.sub("_", database)
    _remove_cut_off(folder, stem, report)
    part, file = _new_file(folder, stem)

    def progress() -> str:
        return f"{part.stat().st_size / 1e6:,.1f} MB in {time.monotonic() - started:.0f} s"

    try:
        with file:
            _dump(dump, connection, file, lambda: report("note", text=f"Backing up {database}: {progress()}."))
            os.fsync(file.fileno())
        entries, done = _entries(restore, part), progress()
        path = part.rename(part.with_suffix(""))
        _to_disk(path.parent)
    except OSError as error:
        raise _failure(f"{part.parent}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    report("note", text=f"Backed up {database} into {path}: {entries} entries, {done}.")
    return path


def _program(name: str) -> str:
    folder = conf.POSTGRESQL_PROGRAMS
    if program := shutil.which(name, path=None if folder is None else str(folder)):
        return program
    raise BackupFailed(
        f"there is no program {name} {'on the PATH' if folder is None else f'in {folder}'}",
        "Install PostgreSQL's client programs, or set ZERO_DOWNTIME_POSTGRESQL_PROGRAMS to the folder where they are.",
    )


def _remove_cut_off(folder: Path, stem: str, report: Report) -> None:
    """Remove the unfinished dumps of this database that no process writes any more."""
    for part in folder.glob("*.dump.part"):
        if re.fullmatch(rf"{re.escape(stem)}_\d{{14}}(_\d+)?\.dump\.part", part.name):
            with suppress(OSError), part.open("rb") as file:  # its writer, if any, holds a lock
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = part.stat()
                if found.st_size or time.time() - found.st_mtime > JUST_MADE:
                    part.unlink()
                    report("note", text=f"Removed {part}, a backup that was cut off.")


def _new_file(folder: Path, stem: str) -> tuple[Path, IO[bytes]]:
    """Make and lock a new file, under a name whose ``.dump`` does not exist.

    The lock lasts until the last process that may write the file, pg_dump included, is gone.
    """
    if not folder.is_dir():
        raise BackupFailed(f"{folder} is not a folder", f"Make it (mkdir -p {folder}), or name another one.")
    stem = f"{stem}_{datetime.now(UTC):%Y%m%d%H%M%S}"
    for number in count(1):
        path = folder / f"{stem}{'' if number == 1 else f'_{number}'}.dump"
        part = path.with_suffix(".dump.part")
        try:
            file = open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")  # noqa: PTH123, SIM115
        except FileExistsError:
            continue
        except OSError as error:
            raise _failure(f"{folder} cannot be written: {error.strerror}") from None
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists() and part.exists():
            return part, file
        file.close()
        part.unlink(missing_ok=True)
    raise AssertionError("count() does not end")


def _dump(program: str, connection: BaseDatabaseWrapper, file: IO[bytes], tick: Callable[[], object]) -> None:
    """Let pg_dump write into the file, and call ``tick`` every REPORT_EVERY seconds; pg_dump ends first in any case."""
    command = [program, "--format=custom", "--no-password", f"--lock-wait-timeout={locks.milliseconds(conf.PATIENCE)}"]
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):
        command.append(f"--role={role}")
    command.append(f"--dbname={_address(connection)}")
    environment = _environment()
    if password := connection.connection.info.password:
        environment["PGPASSWORD"] = password
    with subprocess.Popen(  # noqa: S603  (in its own session, so that Ctrl-C reaches only us)
        command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            said = None
            while said is None:
                try:
                    said = process.communicate(timeout=REPORT_EVERY)[1]
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.terminate()
            process.wait()  # Popen itself does not wait after Ctrl-C
            raise
    if process.returncode:
        raise _failure(_reason("pg_dump", process.returncode, said))


def _address(connection: BaseDatabaseWrapper) -> str:
    """Return the connection string of the connection for libpq, without secrets.

    It has only the parameters of Django's settings, because older programs do not know all of libpq's, and of several
    hosts the one that we are connected to. The program reads the environment and service files itself.
    """
    info = connection.connection.info
    public = {option.keyword.decode() for option in info.pgconn.info if not option.dispchar} - {"client_encoding"}
    said = {name: value for name, value in connection.get_connection_params().items() if name in public}
    if "hostaddr" in said:
        said["hostaddr"] = info.hostaddr
    return make_conninfo(**said | {"dbname": info.dbname, "host": info.host, "port": info.port, "user": info.user})


def _entries(program: str, part: Path) -> int:
    """Return how many entries the file lists."""
    done = subprocess.run([program, "--list", part], env=_environment(), capture_output=True, check=False)  # noqa: S603
    match = re.search(rb"TOC Entries: ([1-9]\d*)", done.stdout)
    if done.returncode or not match:
        raise _failure(f"the file could not be read again: {_reason('pg_restore', done.returncode, done.stderr)}")
    return int(match[1])


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _to_disk(folder: Path) -> None:
    """Flush the folder, so that the file keeps its name if the machine loses power now."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(program: str, code: int, said: bytes) -> str:
    """Return in one line why a program failed: its error without the warnings before it, or the signal."""
    if code < 0:
        return f"{program} was killed by {signal.Signals(-code).name}"
    text = said.decode(errors="replace")
    text = text[max(text.find(f"{program}: error: "), 0) :]
    text = re.sub(rf"{program}: detail: Query was: .*|{program}: (error|detail|hint): ", "", text)
    return " ".join(text.split())[:500].rstrip(".") or f"{program} said nothing"


def _failure(reason: str) -> BackupFailed:
    advice = next((advice for sign, advice in ADVICE.items() if sign in reason), "")
    return BackupFailed(reason, advice or "Solve that, or migrate without a backup.")
