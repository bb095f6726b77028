"""What is wrong with a migration file, an argument or the database, and what is to be done about it?

Django ends with a traceback where a file cannot be loaded, the files do not fit together, or the server is not there.
The answer is one sentence that names the migration or the database; it is found in the error and in what was going on
when it was raised. Every command of the engine is a ``Plain`` one, which says it.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import BaseCommand, CommandError
from django.db import Error, InterfaceError, NotSupportedError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.exceptions import (
    BadMigrationError,
    CircularDependencyError,
    InconsistentMigrationHistory,
    NodeNotFoundError,
)
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime import locks
from gotong_royong.zero_downtime.exceptions import UnknownApp, meant, summary


class Plain(BaseCommand):
    """A command that ends with one sentence and a non-zero exit, where others end with a traceback.

    That is for the command line, unless it says --traceback; whoever calls the command from Python gets the error.
    """

    _called_from_command_line: bool  # Django's

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute(*args, **options)
        except CommandError as error:
            if "migration match" in str(error):
                error.args = (f"{error} showmigrations {options['app_label']} lists them.",)
            raise
        except KeyboardInterrupt:
            if not self._called_from_command_line or options["traceback"]:
                raise
            self.stderr.write("\nStopped by Ctrl-C or SIGTERM.")
            sys.exit(130)
        except BrokenPipeError as error:
            if not self._called_from_command_line or options["traceback"]:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written at exit
            raise CommandError("Nobody reads what it writes any more, so it stopped.") from error
        except Exception as error:
            if self._called_from_command_line and (said := sentence(error)):
                raise CommandError(said) from error
            raise


def refuse_unknown_apps(labels: Iterable[str]) -> None:
    """Make sure that these apps are installed.

    Raises:
        UnknownApp: names those that are not, and what may have been meant.
    """
    known = sorted(config.label for config in apps.get_app_configs())
    for label in labels:
        if label not in known:
            there_are = f"There are {', '.join(known)}."
            raise UnknownApp(f"No installed app has the label {label!r}. {meant(label, known, there_are)}")


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
        return f"{text}. Nothing can come before what is applied: let the new one depend on the app's last migration."
    if isinstance(error, NodeNotFoundError):
        return _of_dependency(error)
    if isinstance(error, Error):
        return _of_database(error)
    for frame, _ in walk_tb(error.__traceback__):
        names, doing = frame.f_locals, (type(frame.f_locals.get("self")), frame.f_code.co_name)
        loading = doing[1] if issubclass(doing[0], MigrationLoader) else ""
        if loading == "load_disk":
            return _of_file(names, error)
        if loading in {"add_internal_dependencies", "add_external_dependencies"}:
            return f"Migration {names['migration']} has dependencies that cannot be followed: {text}. Correct them."
        if issubclass(doing[0], Migration) and doing[1] == "mutate_state":
            return (
                f"Migration {names['self']} does not fit what comes before it: {summary(error)}, at the operation "
                f"{names['operation'].describe()!r}. Correct its operations or its dependencies."
            )
    return ""


def _of_database(error: Error) -> str:
    """Say where the server is that does not answer, or cannot be used; without the password."""
    reason, state = " ".join(str(error).split()), locks.sqlstate(error)
    if isinstance(error, NotSupportedError):
        return f"{reason.rstrip('.')}. Upgrade the server, or set DATABASE_URL to another one."
    if state == locks.NOT_ALLOWED:
        return f"{reason.rstrip('.')}. Use the role that owns the tables, or GRANT this one what it lacks."
    if not isinstance(error, OperationalError | InterfaceError):
        return ""
    for frame, _ in walk_tb(error.__traceback__):
        connection = frame.f_locals.get("self")
        if not state and isinstance(connection, BaseDatabaseWrapper) and frame.f_code.co_name == "connect":
            database = connection.settings_dict
            where = f"{database['HOST'] or 'localhost'}:{database['PORT'] or 5432}"
            return (
                f"cannot connect to database {database['NAME']} on {where} as {database['USER'] or 'the system user'}. "
                f"Check DATABASE_URL and that the server is running. It said: {reason}"
            )
    if locks.is_lost(error):
        return f"The connection to the database was lost: {reason.rstrip('.')}. Once it is back, do that again."
    return reason


def _of_file(loading: dict[str, Any], error: BaseException) -> str:
    """Say which file could not be loaded, from what the loader was about to do."""
    app, package = loading["app_config"].label, loading["module_name"]
    is_one = loading.get("migration_path", "").startswith(f"{package}.")  # else it is the package itself
    what = f"Migration {app}.{loading['migration_name']}" if is_one else f"The package {package}"
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
