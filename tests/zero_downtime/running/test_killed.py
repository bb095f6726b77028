"""Does the next migrate finish what a killed one began, wherever it was killed?

Each migration of the history is killed, really, before statements that it sends to the server and before commits,
whichever session makes them: before the first and last ones and some in between, fewer if it is atomic, since its
transaction leaves nothing. What was left is finished, compared with an undisturbed run, and rolled back for the next
time. Where nothing was left, the next run that is killed is the one that comes after.
"""

import json
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from tests.catalog import fingerprint
from tests.databases import conninfo
from tests.zero_downtime.steps import environment

pytestmark = [pytest.mark.once, pytest.mark.slow, pytest.mark.timeout(600)]

GRAPH = MigrationLoader(None).graph
LEAVES = sorted(GRAPH.leaf_nodes(), key=lambda key: (key[0] != "zero_downtime", key))
HISTORY = list(dict.fromkeys(key for leaf in LEAVES for key in GRAPH.forwards_plan(leaf)))
FIRST, LAST, SOME = 2, 5, 10  # the commits of the run and of the step, and of what is recorded; how many in between
STEPS = [key for key in HISTORY if key[0] != "zero_downtime"]


class Killer:
    """Runs migrate on copies of the databases that the history leads through."""

    def __init__(self, django_db_blocker, env=None):
        self.blocker = django_db_blocker
        self.templates, self.name = [], uuid.uuid4().hex[:12]
        with django_db_blocker.unblock():
            env = env or environment(connection)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zero_downtime.killed"],
            env=env,
            cwd=settings.BASE_DIR,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def migrate(self, database, *key, **keywords):
        return self.run(database, "migrate", *key, **keywords)

    def run(self, database, *command, kill=None, from_start=False):
        order = {"database": database, "command": command, "kill": kill, "from_start": from_start}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if kill is None or answer["signal"] is None:
            assert answer["code"] == 0, answer["output"]
        else:
            assert answer["signal"] == signal.SIGKILL, answer
        return answer

    def sql(self, statement, database="postgres"):
        with self.connect(database) as session:
            session.execute(statement)

    def look(self, database):
        with self.connect(database) as session, session.cursor() as cursor:
            return fingerprint(cursor)

    def connect(self, database):
        with self.blocker.unblock():
            parameters = conninfo(connection) | {"dbname": database}
        return psycopg.connect(**parameters, autocommit=True)

    def before(self, key):
        """Return the name of the database as it is before that migration."""
        for number in range(len(self.templates), HISTORY.index(key) + 1):
            name = f"killed_{number}_{self.name}"
            self.sql(f"CREATE DATABASE {name} TEMPLATE {self.templates[-1] if self.templates else 'template1'}")
            self.templates.append(name)
            if number:
                self.migrate(name, *HISTORY[number - 1])
        return self.templates[HISTORY.index(key)]

    @contextmanager
    def copy(self, template):
        name = f"killed_copy_{self.name}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        for name in self.templates:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def killer(django_db_setup, django_db_blocker):
    killer = Killer(django_db_blocker)
    yield killer
    killer.close()


@pytest.mark.parametrize("key", STEPS, ids=".".join)
def test_killed_before_each_statement(killer, key):
    template = killer.before(key)
    with killer.copy(template) as database:
        before = killer.look(database)
        made = killer.migrate(database, *key)["made"]
        after = killer.look(database)
        take_back(killer, database, before)
        atomic = GRAPH.nodes[key].atomic
        for kill in range(made):
            if FIRST <= kill < made - LAST and kill % (made // 2 if atomic else made // SOME + 1):
                continue
            killer.migrate(database, *key, kill=kill)
            left = killer.look(database)
            if atomic:
                assert left in (before, after)
            if left == before and kill < made - 1:
                continue  # the next killed run is the next migrate
            killer.migrate(database, *key)
            assert killer.look(database) == after, f"killed before statement {kill}"
            take_back(killer, database, before)


def take_back(killer, database, before):
    killer.run(database, "rollback", "--steps", "1", "--yes", "--all")
    assert killer.look(database) == before


def test_killed_anywhere_from_the_start(killer):
    """The first run on an empty database, with the making of the ledger."""
    template = killer.before(HISTORY[0])
    with killer.copy(template) as database:
        made = killer.migrate(database, *STEPS[0], from_start=True)["made"]
        after = killer.look(database)
        for kill in range(made):
            killer.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public", database)
            killer.migrate(database, *STEPS[0], kill=kill, from_start=True)
            killer.migrate(database, *STEPS[0])
            assert killer.look(database) == after, f"killed before statement {kill}"
