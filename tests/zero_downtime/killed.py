"""A process that forks runs of migrate and kills them where it is told: ``python -m tests.zero_downtime.killed``.

Each line of its standard input is one run, as JSON: ``database``, the ``command`` with its arguments, before which
statement or commit to kill it (``kill``, null for not at all), and whether these are counted from its start
(``from_start``) or from its first step. It answers with a line of JSON: ``signal`` and ``code`` the run ended with,
how many statements it ``made``, and its ``output``. A SELECT does not count: it leaves what the statement before left.
"""

import faulthandler
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from importlib import import_module

import django
import psycopg
from django.core.management import call_command
from django.db import connections
from django.db.migrations.loader import MigrationLoader

PATIENCE = 60  # seconds, after which a run that has not ended says where it is, and ends


def run(order, answer):
    """Be the run, and its end."""
    made, counts = 0, order["from_start"]

    def perhaps_die():
        nonlocal made
        if counts and threading.current_thread() is threading.main_thread():
            if made == order["kill"]:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1

    def execute(cursor, query, *arguments, execute=psycopg.Cursor.execute, **keywords):
        if not str(query).lstrip().startswith("SELECT"):
            perhaps_die()
        return execute(cursor, query, *arguments, **keywords)

    def commit(connection, commit=psycopg.Connection.commit):
        perhaps_die()
        return commit(connection)

    def begin(*arguments, **keywords):
        nonlocal counts
        counts = True
        return real_begin(*arguments, **keywords)

    from gotong_royong.zero_downtime.running.ledger import Steps

    real_begin, Steps.begin = Steps.begin, begin
    psycopg.Cursor.execute, psycopg.Connection.commit = execute, commit
    connections["default"].settings_dict["NAME"] = order["database"]
    code = 0
    try:
        call_command(*order["command"])
        connections.close_all()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os.write(answer, str(made).encode())
    os._exit(code)


def main():
    django.setup()
    import_module("gotong_royong.zero_downtime.management.commands.rollback")
    MigrationLoader(None)  # so that no child has to import the files again
    gc.disable()  # nor looks through all that, and copies the pages that it stands on
    answers = os.dup(1)
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as output:
            if not (child := os.fork()):
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
                run(order, writer)
            os.close(writer)
            made = os.read(reader, 20)
            os.close(reader)
            _, status = os.waitpid(child, 0)
            output.seek(0)
            answer = {
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "made": int(made or 0),
                "output": output.read().decode(),
            }
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
