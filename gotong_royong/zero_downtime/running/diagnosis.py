"""What is wrong with a migration file, an argument or the database, in one sentence?

Django ends with a traceback if a file cannot be loaded, the files do not fit together, or the server does not answer.
Here the answer is a sentence that names the migration or the database, and what to do. To find the migration, all are
loaded once more, one by one.
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
    """Check that these apps are installed.

    Raises:
        CommandError: names the first that is not, and the nearest app.
    """
    for label in labels:
        try:
            apps.get_app_config(label)
        except LookupError as error:
            near = "" if "Did you mean" in str(error) else meant(label, apps.app_configs, "")
            raise CommandError(f"{error} {near}".rstrip()) from error


def sentence(error: BaseException) -> str:
    """Return what is wrong with a migration or the database, and what to do; empty if the error is another one."""
    text = str(error).rstrip(".")
    if isinstance(error, ImproperlyConfigured):
        return str(error)
    if isinstance(error, BadMigrationError):
        return f"{text}. Write one, as makemigrations --empty does, or move the file out of its folder."
    if isinstance(error, CircularDependencyError):
        return f"These migrations need one another in a circle: {text}. Remove one of them from another's dependencies."
    if isinstance(error, InconsistentMigrationHistory):
        return (
            f"{text}. A new migration cannot come before an applied one: make it depend on the app's last migration. "
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
    """Load the migrations again, one by one, and yield what is wrong with the first bad one, and the error."""
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
                text = f"does not fit what comes before it: {summary(error)}, at the operation {operation.describe()!r}"
                yield f"Migration {app}.{name} {text}. Correct its operations or its dependencies.", error
                return


class Watched(MigrationLoader):
    """Django's loader; ``at`` is the migration whose dependencies it follows."""

    at: Migration | None = None

    def add_internal_dependencies(self, key: Key, migration: Migration) -> None:
        self.at = migration
        super().add_internal_dependencies(key, migration)

    def add_external_dependencies(self, key: Key, migration: Migration) -> None:
        self.at = migration
        super().add_external_dependencies(key, migration)


def files() -> Iterator[str]:
    """Yield each package of migrations, and then its modules; the caller imports the package in between."""
    for config in apps.get_app_configs():
        package, _ = MigrationLoader.migrations_module(config.label)
        if package and find_spec(package):
            yield package
            for module in iter_modules(getattr(sys.modules[package], "__path__", [])):
                if not module.ispkg and module.name[0] not in "_~":
                    yield f"{package}.{module.name}"


def _of_database(error: Error | psycopg.Error) -> str:
    """Say which server does not answer, or what it says, without the password and without rows."""
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
            f"Check DATABASE_URL and that the server is running. The error: {reason}"
        )
    if advice := ADVICE.get(state or ""):
        return f"{reason}. {advice}"
    if locks.is_lost(error):
        return f"The connection to the database was lost: {reason}. Once it is back, try again."
    return f"{summary(error)}. --traceback shows where it came from."


def _of_file(path: str, error: BaseException) -> str:
    """Say which file could not be loaded."""
    package, _, name = path.rpartition(".")
    labels = {MigrationLoader.migrations_module(config.label)[0]: config.label for config in apps.get_app_configs()}
    what = f"Migration {labels[package]}.{name}" if package in labels else f"The package {path}"
    why = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else summary(error)
    return f"{what} cannot be loaded: {why}{_place(error)}. Correct it and try again; --traceback shows more."


def _place(error: BaseException) -> str:
    """Return the line of the last loaded file where it failed, in words; empty if no file was read."""
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
        f"Migration {error.origin} depends on {node}, which does not exist. "
        "Correct its dependencies, or add the missing file; perhaps a commit lacks it."
    )
