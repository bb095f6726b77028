"""Does the command line say in one sentence what is wrong with the database, and keep its password to itself?"""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from tests.databases import conninfo, url
from tests.test_settings import manage

pytestmark = pytest.mark.once


def one_sentence(*arguments, **environment):
    code, out, err = manage(*arguments, DEBUG="1", **environment)
    assert code == 1
    assert err.startswith(("Error: ", "CommandError: "))
    assert err.count("\n") == 1
    assert "s3cret" not in out + err
    return err


@pytest.mark.parametrize("command", ["migrate", "showmigrations", "rollback", "createsuperuser"])
def test_nobody_listens(command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    err = one_sentence(command, DATABASE_URL=f"postgresql://maria:s3cret@127.0.0.1:{port}/gotong")
    assert f"cannot connect to database gotong on 127.0.0.1:{port} as maria." in err
    assert "Check DATABASE_URL and that the server is running." in err


def test_no_such_database(db):
    address = url(connection).rpartition("/")[0] + "/no_such_database"
    assert 'database "no_such_database" does not exist' in one_sentence("migrate", DATABASE_URL=address)


def test_traceback_on_request():
    code, _, err = manage(
        "migrate", "--traceback", DEBUG="1", DATABASE_URL="postgresql://maria:s3cret@127.0.0.1:1/gotong"
    )
    assert code == 1
    assert "Traceback" in err
    assert "s3cret" not in err


class OldServer(threading.Thread):
    """A way to the real server that changes one thing on its way back: the version in its greeting."""

    def __init__(self, target):
        super().__init__(daemon=True)
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = self.dial()
            threading.Thread(target=self.pump, args=(client, server, lambda data: data), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, self.age), daemon=True).start()

    def dial(self):
        host, port = self.target.get("host", "localhost"), self.target.get("port") or 5432
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((host, int(port)))

    @staticmethod
    def age(data):
        before, name, rest = data.partition(b"server_version\0")
        version, end, after = rest.partition(b"\0")
        return before + name + b"13.9".ljust(len(version), b" ") + end + after if name else data

    @staticmethod
    def pump(source, target, change):
        with suppress(OSError), target:  # either side may hang up first
            while data := source.recv(65536):
                target.sendall(change(data))


def test_a_server_older_than_14(db):
    old = OldServer(conninfo(connection))
    old.start()
    address = url(connection, host="127.0.0.1", port=old.port) + "?sslmode=disable&gssencmode=disable"
    code, _, err = manage("migrate", DATABASE_URL=address, DEBUG="1")
    old.listener.close()
    assert code == 1
    assert re.search(r"zero_downtime\.E002\) .*PostgreSQL \d+ or later is required \(found 13\.9\)", err)
    assert "HINT: Upgrade the server" in err


def test_ctrl_c_ends_with_one_sentence(scratch):
    """A migrate that waits for a lock is interrupted; the database takes no harm."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(**conninfo(scratch)) as blocker,
        psycopg.connect(**conninfo(scratch), autocommit=True) as watcher,
    ):
        blocker.execute("CREATE TABLE django_migrations (id bigint)")
        run = subprocess.Popen(
            [sys.executable, "manage.py", "migrate"],
            env={"PATH": "/usr/bin:/bin", "DEBUG": "1", "DATABASE_URL": url(scratch)},
            cwd=settings.BASE_DIR,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not watcher.execute(waiting).rowcount:
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        err = run.communicate(timeout=30)[1]
        blocker.rollback()
        assert watcher.execute("SELECT to_regclass('django_migrations')").fetchone() == (None,)
    assert run.returncode == 130
    assert err == "\nStopped by Ctrl-C or SIGTERM.\n"
