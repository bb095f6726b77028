"""How are PostgreSQL's own programs run, and as whom?"""

import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

ACCOUNT, PORT = "pgserver", "5432"
SOCKET_PATH_BYTES = 103  # on macOS; Linux allows 107


def locale(version: int) -> list[str]:
    """Return the arguments of initdb for a collation that is the same on every machine."""
    if version >= 17:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C", "--lc-ctype=C.UTF-8" if sys.platform == "linux" else "--lc-ctype=UTF-8"]


def account() -> tuple[int, int]:
    """Return the user and group for a new data folder: ours, or a system user's, because PostgreSQL refuses root.

    Raises:
        OSError: if the system user does not exist and cannot be made.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    output = ""
    for _ in range(2):
        with suppress(KeyError):
            found = pwd.getpwnam(ACCOUNT)
            return found.pw_uid, found.pw_gid
        output = begin(["/usr/sbin/useradd", "--system", ACCOUNT], None).communicate()[0].strip()
    raise OSError(f"the system user {ACCOUNT} cannot be made: {output}")


def open_way(owner: tuple[int, int], *paths: Path) -> None:
    """If we are root, let the server's user into the folders above these (``chmod o+x``)."""
    if os.geteuid() == 0:
        for folder in {parent for path in paths for parent in path.parents}:
            status = folder.stat()
            if status.st_uid != owner[0] and not status.st_mode & stat.S_IXOTH:
                folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


@contextmanager
def plain(programs: Path) -> Iterator[Path]:
    """Copy the programs if their path has special characters: initdb starts the others through a shell."""
    if not set(str(programs)) & set('"$`\\'):
        yield programs
        return
    above = programs.parent.parent  # the wheel, whose libraries they load
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for part in [programs.parent, *above.parent.glob(f"{above.name}.libs")]:
            shutil.copytree(part, Path(folder) / part.relative_to(above.parent), symlinks=True)
        yield Path(folder) / programs.relative_to(above.parent)


def begin(
    command: list[Any], owner: tuple[int, int] | None, log: Path | None = None, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[str]":
    """Start a program as the owner of the data folder, in its own session; its output goes to a pipe or the log."""
    as_owner: dict[str, Any] = {}
    if owner and os.geteuid() == 0:
        as_owner = {"user": owner[0], "group": owner[1], "extra_groups": []}
    with log.open("ab") if log else nullcontext(subprocess.PIPE) as output:
        if log and owner:
            os.chown(log, *owner)
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            errors="replace",
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            umask=0o077,
            **as_owner,
        )


def holds_socket(folder: Path) -> bool:
    """Whether the path of a socket in that folder is short enough."""
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES


def server(programs: Path, data: Path, sockets: Path, **options: str) -> list[Any]:
    """Return the command of a server that listens only on a socket in a folder."""
    folders = '"{}"'.format(str(sockets).replace('"', '""'))
    options = {"listen_addresses": "", "port": PORT, "unix_socket_directories": folders, **options}
    return [programs / "postgres", "-D", data, *(f"--{name}={value}" for name, value in options.items())]


def make_data(
    programs: Path, version: int, owner: tuple[int, int], data: Path, more: list[str], waiting: Iterable[object] = ()
) -> None:
    """Make a data folder with initdb, first under another name, so that no half of one is left.

    Raises:
        OSError: with the error of initdb.
    """
    unfinished = data.with_name(f"{data.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    try:
        os.chown(unfinished, *owner)
        with plain(programs) as copy:
            command = [copy / "initdb", "--encoding=UTF8", *locale(version), *more, "--pgdata", unfinished]
            process = begin(command, owner)
            try:
                for _ in waiting:
                    if process.poll() is not None:
                        break
                output = process.communicate()[0]
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise OSError(f"initdb says “{last_words(output)}”")
        unfinished.rename(data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def last_words(text: str) -> str:
    """Return the last error that a program wrote, or the one about a full disk, which causes others."""
    errors = re.findall(r"(?:FATAL|PANIC|ERROR|error): .*", text)
    full = [error for error in errors if "No space left" in error]
    return " ".join((full or errors or [text])[-1].split())
