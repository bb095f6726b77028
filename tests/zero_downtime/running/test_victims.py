"""Does nobody wait for a migration for longer than a moment, whatever it does and whoever idles on its tables?

While a step runs, every table has a reader and a writer, and somebody who has read them all idles in a transaction from
the step's beginning on. How long they wait for the step is what its row in the ledger says, which comes from PostgreSQL
and is true on a busy machine, too. What they themselves see is compared with how long the idle one stays. The time that
the machine stood still is taken off both.
"""

from contextlib import ExitStack
from importlib import import_module

import psycopg
import pytest
from django.core.management import call_command
from django.db import migrations
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime.exceptions import BlockedTooLong
from gotong_royong.zero_downtime.models import Step
from gotong_royong.zero_downtime.running.executor import Executor
from gotong_royong.zero_downtime.running.ledger import only_runner
from tests.bench.shop.trials import TRIALS
from tests.bench.victims import FILL
from tests.conftest import _database
from tests.databases import conninfo
from tests.test_constraints import ROWS
from tests.test_migrations import GRAPH, HISTORY, OURS
from tests.zero_downtime.load import clock, holding, load

pytestmark = [pytest.mark.once, pytest.mark.slow]

HOLD = 1.0  # seconds; what is bounded is the wait, which does not grow with it
STALLED = HOLD / 2  # seconds that anybody may wait, also if the machine is busy with something else
PAUSE = 0.002  # seconds between two statements of all victims together

SHOP = import_module("tests.bench.shop.migrations.0001_initial").Migration("0001_initial", "shop")
REWRITE = "change a type (rewrites)"

READ = "SELECT {1} FROM {0} LIMIT 1"
WRITE = "UPDATE {0} SET {1} = {1} WHERE ctid = (SELECT ctid FROM {0} LIMIT 1)"
MANY = {
    "users": """
        INSERT INTO users (username, email, password_hash)
        SELECT 'user' || i, 'user' || i || '@example.org', '!' FROM generate_series(1, 3000) i
    """,
    "tasks": "INSERT INTO tasks (title, creator_id) SELECT username, id FROM users",
    "contributions": """
        INSERT INTO contributions (user_id, task_id, title, markov_contribution_id)
        SELECT creator_id, id, title, 'c' || title FROM tasks
    """,
}
ONE = [(statement.split()[2], statement) for statement in ROWS.split(";\n") if statement]
TABLES = """
    SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum = 1
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
    AND relname <> 'django_migrations' AND NOT starts_with(relname, 'zero_downtime')
"""


class People:
    """Use every table that is there while a step runs. It is them to whom a run reports what it does."""

    def __init__(self, database):
        self.database = database
        self.there = {**conninfo(database), "options": "-c synchronous_commit=off"}
        self.stalls, self.lost = {}, {}
        self._filled, self._victims, self._present = set(), [], ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._present.close()

    def __call__(self, event, **facts):
        if event == "step_started":
            if tables := self._tables():
                statements = [text.format(*table) for table in tables for text in (READ, WRITE)]
                lock = f"LOCK TABLE {', '.join(table for table, _ in tables)} IN ACCESS SHARE MODE"
                victims = load(self.there, *statements, pause=PAUSE * len(statements))
                self._victims = self._present.enter_context(victims)
                self._present.enter_context(holding(self.there, lock, HOLD, from_first_wait=True))
            self._lost_before = clock().lost()
        elif event == "step_finished":
            step = "{app}.{name} {direction}".format(**facts)
            self.lost[step] = clock().lost() - self._lost_before
            self._present.close()
            for victim in self._victims:
                self.stalls[step, victim.statement] = victim.longest

    def _tables(self):
        """Return the tables and a column of each; give new ones some rows."""
        with psycopg.connect(**self.there, autocommit=True) as connection:
            tables = connection.execute(TABLES).fetchall()
            new = dict(tables).keys() - self._filled
            for table, statement in [*MANY.items(), *ONE]:
                if table in new:
                    connection.execute(statement)
        self._filled |= new
        return tables


def migrate(database, people, targets, migration=None):
    """Go to the targets, or apply this migration of the shop, while people are there."""
    with only_runner(database, people) as alias, people:
        executor = Executor(database, alias=alias, report=people)
        executor.migrate(targets, planned(executor, migration) if migration else None)


def planned(executor, migration):
    """Return a plan of that one migration of the shop."""
    for one in (SHOP, migration):
        executor.loader.graph.add_node(("shop", one.name), one)
    executor.loader.graph.add_dependency(migration, ("shop", migration.name), ("shop", SHOP.name))
    return [(migration, False)]


def trial(*operations, atomic=True):
    return type("Migration", (migrations.Migration,), {"operations": operations, "atomic": atomic})(
        "0002_trial", "shop"
    )


def assert_nobody_waited(database, people):
    steps = Step.objects.using(database.alias).values_list("app", "name", "direction", "longest_blocked")
    waits = {f"{app}.{name} {direction}": seconds for app, name, direction, seconds in steps}
    waits = {step: seconds - people.lost.get(step, 0.0) for step, seconds in waits.items()}
    assert {step: seconds for step, seconds in waits.items() if seconds > STALLED} == {}
    assert {who: seconds for who, seconds in people.stalls.items() if seconds > STALLED} == {}


@pytest.fixture(autouse=True)
def budget(settings):
    """Nothing ends because the machine stands still: what anybody waits for is measured all the same."""
    settings.ZERO_DOWNTIME_BLOCK_BUDGET = 10.0


@pytest.fixture(scope="module")
def filled(django_db_setup, django_db_blocker):
    """The name of a database with the shop's tables and the ledger's, full of rows."""
    with django_db_blocker.unblock(), _database() as database:
        call_command("migrate", "zero_downtime", database=database.alias, verbosity=0)
        with database.schema_editor() as editor:
            SHOP.apply(ProjectState(), editor)
        MigrationRecorder(database).record_applied("shop", SHOP.name)
        fill(database, 20_000)
        database.close()
        yield database.alias


@pytest.fixture
def shop(filled, django_db_blocker):
    with django_db_blocker.unblock(), _database(filled) as database:
        yield database


def fill(database, rows):
    with database.cursor() as cursor:
        for statement in FILL:
            cursor.execute(statement.format(rows=rows))


def test_the_whole_history_up_and_down(scratch):
    people = People(scratch)
    migrate(scratch, people, GRAPH.leaf_nodes())
    migrate(scratch, people, [(app, None) for app in OURS])
    steps = Step.objects.using(scratch.alias)
    assert steps.filter(app__in=OURS, direction="up").count() == len(HISTORY)
    assert steps.filter(app__in=OURS, direction="down").count() == len(HISTORY)
    assert_nobody_waited(scratch, people)
    for direction in ("up", "down"):  # the people were there
        assert steps.filter(direction=direction, lock_wait__gt=0.1, blocked_sessions__gt=0).count() > 5


@pytest.mark.parametrize("name", [name for name in TRIALS if name != REWRITE])
def test_a_change_of_a_table_with_rows(shop, name):
    people, (operation, safe) = People(shop), TRIALS[name]
    spelled_out = migrations.RunSQL(safe, state_operations=[operation]) if safe else operation
    migrate(shop, people, [], trial(spelled_out, atomic=not safe))
    assert_nobody_waited(shop, people)


def test_a_rewrite_is_canceled_within_the_block_budget_and_says_so(shop, settings):
    settings.ZERO_DOWNTIME_BLOCK_BUDGET = 0.1
    fill(shop, 400_000)
    people = People(shop)
    with pytest.raises(BlockedTooLong) as caught:
        migrate(shop, people, [], trial(TRIALS[REWRITE].operation))
    assert "It held AccessExclusiveLock on table orders, which blocks reads and writes" in str(caught.value)
    assert 'ALTER TABLE "orders" ALTER COLUMN "amount" TYPE bigint' in str(caught.value)
    step = Step.objects.using(shop.alias).latest("pk")
    assert 0.1 < step.longest_blocked < STALLED + sum(people.lost.values())
    assert max(people.stalls.values()) < STALLED


def test_stock_django_keeps_everybody_waiting(shop):
    """So the measure is one: without the engine, the same people wait for as long as the idle one stays."""
    people, change = People(shop), trial(TRIALS["add a field with db_default"].operation)
    executor = MigrationExecutor(shop)
    with people:
        people("step_started")
        executor.migrate([], planned(executor, change))
        people("step_finished", app="shop", name=change.name, direction="up")
    stalls = {statement: seconds for (_, statement), seconds in people.stalls.items()}
    assert min(stalls[text.format("orders", "id")] for text in (READ, WRITE)) > STALLED
