"""Is a proxy that mixes sessions up refused, and one that does not let through? With a real PgBouncer."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from gotong_royong.zero_downtime.models import Run
from tests.databases import conninfo, look, url
from tests.zero_downtime.items import FILL, ITEM

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
SETTINGS = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
"""

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(PROGRAM is None, reason="needs pgbouncer (Debian's package of that name)"),
]


def user(server):
    """Return who may reach the server's socket, or is nobody in particular, if we are root: PgBouncer refuses root."""
    if os.geteuid():
        return {}
    host = server.get("host", "")
    number = Path(host).stat().st_uid if host.startswith("/") else 65534
    return {"user": number, "extra_groups": []}


@pytest.fixture(params=["transaction", "session"])
def pool(scratch, request):
    """The mode of a pool, and its address."""
    server = conninfo(scratch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = {name: value for name, value in server.items() if name != "dbname"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pgbouncer.ini"
        line = " ".join(f"{name}='{value}'" for name, value in parts.items())
        file.write_text(SETTINGS.format(server=line, port=port, mode=request.param))
        if "user" in (who := user(server)):
            os.chown(folder, who["user"], -1)
            os.chown(file, who["user"], -1)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([PROGRAM, file], cwd="/", **quiet, **who)
        address = url(scratch, host="127.0.0.1", port=port)
        try:
            for _ in range(500):
                assert process.poll() is None, "PgBouncer did not start"
                with suppress(psycopg.OperationalError), psycopg.connect(address):
                    break
                time.sleep(0.02)
            yield request.param, address
        finally:
            process.terminate()
            process.wait()


def test_a_pool_of_transactions_is_refused_and_one_of_sessions_is_not(shop, scratch, pool):
    mode, address = pool
    before = look(scratch)
    if mode == "transaction":
        said = shop.fail("migrate", DATABASE_URL=address)
        assert said.startswith("TransactionPooling: This database connection goes through a proxy that pools ")
        assert said.endswith("Set DATABASE_URL to the server itself, or to a pool of sessions, and run this again.\n")
        assert look(scratch) == before
        shop.models(ITEM)
        (shop.migrations.parent / "backfills.py").write_text(FILL)
        shop.succeed("migrate")
        assert shop.fail("rollback", DATABASE_URL=address).startswith("TransactionPooling: This database connection ")
        said = shop.fail("backfill", "run", "shop.fill", DATABASE_URL=address)
        assert "TransactionPooling: This database connection goes through a proxy" in said
        return
    assert "Applying shop.0001_items... OK" in shop.succeed("migrate", DATABASE_URL=address)
    assert Run.objects.using(scratch.alias).get().status == "succeeded"
    said = shop.succeed("rollback", "--yes", "--all", DATABASE_URL=address)
    assert "Took back 1 migration in run 2 (rollback)." in said
    assert "items" not in str(look(scratch)["columns"])
