"""A table of skills whose descriptions are to be filled, backfills that do so, and a log of the rows they write."""

import itertools
import threading
import time
from contextlib import contextmanager

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.db.models import Model, Q
from django.db.models.functions import Upper

from gotong_royong.zero_downtime.backfills import BackfillDeclaration, declarations, pool
from gotong_royong.zero_downtime.backfills.worker import Worker
from tests.conftest import _database

LOG = """
    CREATE TABLE written (id uuid, was text, is_now text);
    CREATE FUNCTION log_written() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO written VALUES (NEW.id, OLD.description, NEW.description);
        RETURN NULL;
    END $$;
    CREATE TRIGGER log_written AFTER UPDATE OF description ON skills FOR EACH ROW EXECUTE FUNCTION log_written();
    ALTER TABLE skills ADD COLUMN filler text NOT NULL DEFAULT repeat('x', 150);
    ALTER TABLE skills SET (autovacuum_enabled = false);
"""
FILL = "INSERT INTO skills (name) SELECT '{0} ' || i FROM generate_series(1, {1}) i"
UNDONE = "SELECT count(*) FROM skills WHERE description IS DISTINCT FROM upper(name)"
TWICE = "SELECT count(*) FROM (SELECT FROM written WHERE is_now IS NOT NULL GROUP BY id HAVING count(*) > 1) AS twice"


@contextmanager
def going(name, database, workers=2):
    """Let workers go through a backfill during the block, and wait for its end."""

    def go():
        try:
            pool.run(name, database.alias, workers=workers)
        finally:
            connections[database.alias].close()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(120)
        assert not thread.is_alive()


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_jobs(row, seconds):
    """Work on a backfill as the queue does, until it has ended; return how many jobs it took."""

    def is_over():
        return time.monotonic() > over_at and not worker.verifies

    for count in range(1, 61):
        over_at = time.monotonic() + seconds
        worker = Worker(row, stop=is_over)
        if worker.run().status not in {"pending", "running"}:
            return count
    raise AssertionError(row.status)


@pytest.fixture(scope="session")
def migrated_database(django_db_setup, django_db_blocker):
    """The name of a database with all tables, to be copied."""
    with django_db_blocker.unblock(), _database() as database:
        call_command("migrate", database=database.alias, verbosity=0)
        with database.cursor() as cursor:
            cursor.execute(LOG)
        database.close()
        known = connections.databases.pop(database.alias)
        yield known["NAME"]
        connections.databases[database.alias] = known


@pytest.fixture
def skills(migrated_database, django_db_blocker):
    """A database with an empty table of skills and its log."""
    with django_db_blocker.unblock(), _database(migrated_database) as database:
        yield database


@pytest.fixture
def fill(skills):
    names = itertools.count(1)

    def fill(count):
        with skills.cursor() as cursor:
            cursor.execute(FILL.format(f"skill {next(names)}", count))
            cursor.execute("ANALYZE skills")

    return fill


@pytest.fixture
def ask(skills):
    def ask(question):
        with skills.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()[0] if cursor.description else None

    return ask


@pytest.fixture
def declare():
    """Declare a backfill as an app would, for the time of a test; it fills the descriptions unless told otherwise."""
    names = []

    def declare(called="Trial", **body):
        standard = {"model": "accounts.Skill", "where": Q(description=None), "__module__": "accounts.backfills"}
        if "process" not in body:
            standard["update"] = {"description": Upper("name")}
        declared = type(called, (BackfillDeclaration,), standard | body)
        names.append(declared.name)
        return declared.name

    yield declare
    for name in names:
        declarations.DECLARED.pop(name, None)


@pytest.fixture
def run(skills):
    def run(name, **options):
        return pool.run(name, skills.alias, **{"at_full_speed": True, **options})

    return run


@pytest.fixture
def model():
    """Have a model in accounts for the time of a test; its table is made in the databases that are named."""
    known = apps.all_models["accounts"]
    before = dict(known)

    def model(called, *databases, base=Model, meta=None, **fields):
        options = type("Meta", (), {"app_label": "accounts", "db_table": called.lower(), **(meta or {})})
        made = type(called, (base,), {"__module__": "accounts.models", "Meta": options, **fields})
        for database in databases:
            with database.schema_editor() as editor:
                editor.create_model(made)
        return made

    yield model
    known.clear()
    known.update(before)
    apps.clear_cache()
