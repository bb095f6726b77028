"""What is wrong with a migration file, an argument or the database, and what is to be done about it?

Django ends with a traceback where a file cannot be loaded, the files do not fit together, or the server is not there.
The answer is one sentence that names the migration or the database. To find the migration, all are loaded once more,
one by one.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from traceback import walk_tb

import psycopg
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError
from django.db import Error, NotSupportedError
from django.db.migrations import Migration
from django.db.migrations.exceptions import (
    BadMigrationError,
    CircularDependencyError,
    InconsistentMigrationHistory,
    NodeNotFoundError,
)
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

from ..exceptions import ADVICE, meant, summary
from ..postgres import locks
from ..stages import Key


def refuse_unknown_apps(labels: Iterable[str]) -> None:
    """Make sure that these apps are installed.

    Raises:
        CommandError: Django's, of the first that is not, with what may have been meant.
    """
    for label in labels:
        try:
            apps.get_app_config(label)
        except LookupError as error:
            near = "" if "Did you mean" in str(error) else meant(label, apps.app_configs, "")
            raise CommandError(f"{error} {near}".rstrip()) from error


def sentence(error: BaseException) -> str:
    """Say what is wrong with a migration or the database, why, and what to do; nothing if it is something else."""
    text = str(error).rstrip(".")
    if isinstance(error, ImproperlyConfigured):
        return str(error)
    if isinstance(error, BadMigrationError):
        return f"{text}. Write one, as makemigrations --empty does, or move the file out of its folder."
    if isinstance(error, CircularDependencyError):
        return f"These migrations need one another in a circle: {text}. Take one of them out of another's dependencies."
    if isinstance(error, InconsistentMigrationHistory):
        return (
            f"{text}. Nothing can come before what is applied: let the new one depend on the app's last migration. "
            "If it was applied, and only its row in django_migrations is lost, insert that row again."
        )
    if isinstance(error, NodeNotFoundError):
        return _of_dependency(error)
    if isinstance(error, Error | psycopg.Error):
        return _of_database(error)
    try:
        return next((said for said, found in _found() if type(found) is type(error)), "")
    except Exception:  # noqa: BLE001  (something else is wrong)
        return ""


def _found() -> Iterator[tuple[str, BaseException]]:
    """Load the migrations again, one by one, and yield what is wrong with the first that cannot be used."""
    for path in files():
        try:
            import_module(path)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a file may raise anything)
            yield _of_file(path, error), error
            return
    loader = Watched(None, ignore_no_migrations=True, load=False)
    try:
        loader.build_graph()
    except Exception as error:  # noqa: BLE001
        text = f"{loader.at} has dependencies that cannot be followed: {str(error).rstrip('.')}. Correct them."
        yield f"Migration {text}", error
        return
    state = ProjectState(real_apps=loader.unmigrated_apps)
    graph = loader.graph
    for app, name in dict.fromkeys(key for leaf in graph.leaf_nodes() for key in graph.forwards_plan(leaf)):
        for operation in loader.disk_migrations[app, name].operations:
            try:
                operation.state_forwards(app, state)
            except Exception as error:  # noqa: BLE001
                yield (
                    (
                        f"Migration {app}.{name} does not fit what comes before it: {summary(error)}, at the operation "
                        f"{operation.describe()!r}. Correct its operations or its dependencies."
                    ),
                    error,
                )
                return


class Watched(MigrationLoader):
    """Django's loader; knows whose dependencies it follows."""

    at: Migration | None = None

    def add_internal_dependencies(self, key: Key, migration: Migration) -> None:
        self.at = migration
        super().add_internal_dependencies(key, migration)

    def add_external_dependencies(self, key: Key, migration: Migration) -> None:
        self.at = migration
        super().add_external_dependencies(key, migration)


def files() -> Iterator[str]:
    """Yield each package of migrations, which is then to be imported, and the modules in it."""
    for config in apps.get_app_configs():
        package, _ = MigrationLoader.migrations_module(config.label)
        if package and find_spec(package):
            yield package
            for module in iter_modules(getattr(sys.modules[package], "__path__", [])):
                if not module.ispkg and module.name[0] not in "_~":
                    yield f"{package}.{module.name}"


def _of_database(error: Error | psycopg.Error) -> str:
    """Say where the server is that does not answer, or what it says; without the password and without rows."""
    reason, state = " ".join(str(error).split()).rstrip("."), locks.sqlstate(error)
    said_by = error.__cause__ if isinstance(error, Error) else error  # Django wraps psycopg's
    if isinstance(said_by, psycopg.Error) and said_by.diag.message_primary:
        reason = said_by.diag.message_primary
    if isinstance(error, NotSupportedError):
        return f"{reason}. Upgrade the server, or set DATABASE_URL to another one."
    if isinstance(said_by, psycopg.Error) and (tried := said_by.pgconn):
        name, host, port, user = (part.decode() for part in (tried.db, tried.host, tried.port, tried.user))
        return (
            f"cannot connect to database {name} on {host or 'localhost'}:{port} as {user or 'the system user'}. "
            f"Check DATABASE_URL and that the server is running. It said: {reason}"
        )
    if advice := ADVICE.get(state or ""):
        return f"{reason}. {advice}"
    if locks.is_lost(error):
        return f"The connection to the database was lost: {reason}. Once it is back, do that again."
    return f"{summary(error)}. --traceback shows where it came from."


def _of_file(path: str, error: BaseException) -> str:
    """Say which file could not be loaded."""
    package, _, name = path.rpartition(".")
    labels = {MigrationLoader.migrations_module(config.label)[0]: config.label for config in apps.get_app_configs()}
    what = f"Migration {labels[package]}.{name}" if package in labels else f"The package {path}"
    why = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else summary(error)
    return f"{what} cannot be loaded: {why}{_place(error)}. Correct that and try again; --traceback shows more."


def _place(error: BaseException) -> str:
    """Say in which line of the last of the loaded files it went wrong, if one of them could be read."""
    file, place = "", ""
    for frame, line in walk_tb(error.__traceback__):
        code = frame.f_code
        file = code.co_filename if code.co_name == "<module>" else file
        place = _line(file, line) if code.co_filename == file else place
    if isinstance(error, SyntaxError) and error.filename:
        return _line(error.filename, error.lineno)
    return place


def _line(file: str, line: int | None) -> str:
    path = Path(file)
    return f", in line {line} of {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"


def _of_dependency(error: NodeNotFoundError) -> str:
    if "Django tried to replace" in error.message:
        return f"{error.message} Keep those files until the new one is applied everywhere."
    node = ".".join(error.node) if isinstance(error.node, tuple) else repr(error.node)
    return (
        f"Migration {error.origin} depends on {node}, which is not there. "
        "Correct its dependencies, or add the missing file, which may have been left out of a commit."
    )
