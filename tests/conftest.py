"""Databases for the tests that migrate: each gets one of its own, on the server that the other tests use."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import django
import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

NEWEST = 6, 0  # no ``needs_django`` names a newer one


def _needs_newer(item: pytest.Item) -> bool:
    return any(mark.args > django.VERSION for mark in item.iter_markers("needs_django"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the installed Django cannot do: the same project on a newer one runs it."""
    if newer := [item for item in items if _needs_newer(item)]:
        config.hook.pytest_deselected(items=newer)
        items[:] = [item for item in items if item not in newer]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if django.VERSION < NEWEST:
        terminalreporter.write_line(
            f"On Django {django.__version__}: what needs a newer one is run by make test-newest."
        )


@contextmanager
def _database(template: str = "template1", prefix: str = "scratch") -> Iterator[BaseDatabaseWrapper]:
    alias = f"{prefix}_{uuid.uuid4().hex[:12]}"
    with connection._nodb_cursor() as cursor:
        cursor.execute(f'CREATE DATABASE {alias} TEMPLATE "{template}"')
    connections.databases[alias] = {**connection.settings_dict, "NAME": alias}
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        del connections[alias], connections.databases[alias]
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE {alias} WITH (FORCE)")


@pytest.fixture
def scratch(django_db_blocker: Any, request: pytest.FixtureRequest) -> Iterator[BaseDatabaseWrapper]:
    """An empty database under an alias of its own."""
    request.getfixturevalue("django_db_setup")
    with django_db_blocker.unblock(), _database() as database:
        yield database


@pytest.fixture(scope="session")
def template(django_db_setup: None, django_db_blocker: Any) -> Iterator[Callable[..., str]]:
    """Make a database in which `migrate` was called with these arguments, once a session; return its name.

    Args: those of one run each, as words in a string.
    """
    stack = ExitStack()

    @cache
    def made(*runs: str) -> str:
        database = stack.enter_context(_database())
        for arguments in runs:
            call_command("migrate", *arguments.split(), database=database.alias, verbosity=0)
        database.close()
        stack.callback(connections.databases.__setitem__, database.alias, connections.databases.pop(database.alias))
        return database.alias

    yield made
    with django_db_blocker.unblock():
        stack.close()


@pytest.fixture
def copied(template: Callable[..., str], django_db_blocker: Any) -> Iterator[Callable[..., BaseDatabaseWrapper]]:
    """Copy such a database, under an alias of its own."""
    with django_db_blocker.unblock(), ExitStack() as stack:
        yield lambda *runs: stack.enter_context(_database(template(*runs)))


@pytest.fixture
def run_sql(db: None) -> Callable[..., list[Any]]:
    """Run one statement in the test database, past Django's models, and return its rows."""

    def run(statement: str, *values: Any) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    return run
