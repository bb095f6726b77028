"""What is wrong with a migration file or an argument that Django cannot work with, and what is to be done about it?

Django ends with a traceback where a file cannot be loaded, or the files do not fit together. The answer is one
sentence that names the migration; it is found in the error and in what was going on when it was raised.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from typing import Any

from django.apps import apps
from django.db import Error
from django.db.migrations import Migration
from django.db.migrations.exceptions import (
    BadMigrationError,
    CircularDependencyError,
    InconsistentMigrationHistory,
    NodeNotFoundError,
)
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.exceptions import UnknownApp, summary


def refuse_unknown_apps(labels: Iterable[str]) -> None:
    """Make sure that these apps are installed.

    Raises:
        UnknownApp: names those that are not, and what may have been meant.
    """
    known = sorted(config.label for config in apps.get_app_configs())
    for label in labels:
        if label not in known:
            meant = get_close_matches(label, known, n=1)
            raise UnknownApp(
                f"No installed app has the label {label!r}. "
                + (f"Did you mean {meant[0]}?" if meant else f"There are {', '.join(known)}.")
            )


def sentence(error: BaseException) -> str:
    """Say which migration is wrong, why, and what to do; nothing if the error is about something else."""
    text = str(error).rstrip(".")
    if isinstance(error, BadMigrationError):
        return f"{text}. Write one, as makemigrations --empty does, or move the file out of its folder."
    if isinstance(error, CircularDependencyError):
        return f"These migrations need one another in a circle: {text}. Take one of them out of another's dependencies."
    if isinstance(error, InconsistentMigrationHistory):
        return f"{text}. Nothing can come before what is applied: let the new one depend on the app's last migration."
    if isinstance(error, NodeNotFoundError):
        return _of_dependency(error)
    if isinstance(error, Error):
        return ""
    for frame, _ in walk_tb(error.__traceback__):
        names, doing = frame.f_locals, (type(frame.f_locals.get("self")), frame.f_code.co_name)
        if doing == (MigrationLoader, "load_disk"):
            return _of_file(names, error)
        if doing[0] is MigrationLoader and doing[1] in {"add_internal_dependencies", "add_external_dependencies"}:
            return f"Migration {names['migration']} has dependencies that cannot be followed: {text}. Correct them."
        if issubclass(doing[0], Migration) and doing[1] == "mutate_state":
            return (
                f"Migration {names['self']} does not fit what comes before it: {summary(error)}, at the operation "
                f"{names['operation'].describe()!r}. Correct its operations or its dependencies."
            )
    return ""


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
