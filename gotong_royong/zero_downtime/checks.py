"""Which settings of a project keep the engine from working?"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from django.apps import apps as django_apps
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.management import find_commands, get_commands
from django.db import DatabaseError, NotSupportedError, connections
from django.db.migrations.loader import MigrationLoader

from . import apps

HERE = Path(__file__).parent
OURS, LABEL = apps.NAME, apps.APP
FIRST = "Django uses the one whose app comes first in INSTALLED_APPS: change the order, or rename one of them."


def _is_in_use() -> bool:
    """Whether the app is installed (tests may override that) and has its driver."""
    return apps.HAS_DRIVER and django_apps.is_installed(OURS)


@register(Tags.database)
def servers(databases: Sequence[str] | None = None, **_: Any) -> Iterator[CheckMessage]:
    """Report servers that are too old. Skip those that do not answer."""
    for connection in map(connections.__getitem__, databases or ()):
        try:
            if connection.vendor == "postgresql":
                connection.ensure_connection()
        except NotSupportedError as error:
            yield Error(
                f"Database {connection.alias!r}: {error} Nothing can be migrated there.",
                hint="Upgrade the server, or use a Django that supports it.",
                id="zero_downtime.E002",
            )
        except DatabaseError:
            continue


@register(Tags.compatibility)
def driver(**_: Any) -> Iterator[CheckMessage]:
    """Report that psycopg 3 is missing."""
    if not apps.HAS_DRIVER:
        yield Error(
            f"psycopg 3 cannot be imported, and {OURS} does not work with psycopg2: its commands do what Django's do.",
            hint="pip install 'psycopg[binary]'. Django then uses it in place of psycopg2.",
            id="zero_downtime.E001",
        )


@register(Tags.compatibility)
def engines(**_: Any) -> Iterator[CheckMessage]:
    """Report that no database is PostgreSQL. If only some are not, a run on one of those says so itself."""
    if not any(connection.vendor == "postgresql" for connection in connections.all()):
        yield Warning(
            f"None of DATABASES is PostgreSQL, so nothing is guarded or recorded: the commands of {OURS} do what "
            "Django's do.",
            hint=f"Remove {OURS!r} from INSTALLED_APPS in settings for another database.",
            id="zero_downtime.W004",
        )


@register(Tags.models)
def migrations(**_: Any) -> Iterator[CheckMessage]:
    """Report the engine's own migrations that MIGRATION_MODULES takes away."""
    module, is_set = MigrationLoader.migrations_module(LABEL) if _is_in_use() else ("", False)
    if not is_set:
        return
    folder = find_spec(module) if module else None
    there = {found.name for found in iter_modules(folder.submodule_search_locations)} if folder else set()
    if missing := sorted({path.stem for path in HERE.glob("migrations/2*.py")} - there):
        yield Warning(
            f"MIGRATION_MODULES takes {len(missing)} of the migrations of {OURS} away, from {missing[0]} on. Without "
            "its tables no run can be recorded, so no run begins.",
            hint=f"Remove {LABEL!r} from MIGRATION_MODULES, except in the settings of tests.",
            id="zero_downtime.W005",
        )


@register(Tags.commands)
def commands(**_: Any) -> Iterator[CheckMessage]:
    """Report commands of this app and of others that replace one another."""
    if not _is_in_use():
        return
    from .management import chain

    for name in find_commands(str(HERE / "management")):
        others = [config.name for config in chain.bringing(name) if config.name != OURS]
        if others and isinstance(used := get_commands()[name], str):
            yield from _together(name, used, others[0], chain.command(OURS, name))


def _together(name: str, used: str, other: str, ours: type) -> Iterator[CheckMessage]:
    """Report what is lost of our command, or of the first other app's command of that name.

    Args:
        used: the app whose command Django takes.
    """
    from .management import chain

    is_chained, taken = issubclass(ours, chain.Chained), chain.command(used, name)
    if not issubclass(taken, ours):
        then = "then both work" if is_chained else f"then the command of {used} is not used"
        yield Warning(
            f"manage.py {name} is the command of {used}, so the command of {OURS} is not used.",
            hint=f"Put {OURS!r} before {used!r} in INSTALLED_APPS; {then}.",
            id="zero_downtime.W001",
        )
    elif not is_chained:
        yield Warning(f"{OURS} and {other} both bring a command {name}.", hint=FIRST, id="zero_downtime.W002")
    elif (beneath := chain.next_to(taken)) and not chain.can_carry(beneath[1], taken):
        yield Warning(
            f"manage.py {name} is the command of {used}, so the command of {beneath[0].name} is not used: "
            "it does not subclass Django's, so the two cannot be combined.",
            hint=FIRST,
            id="zero_downtime.W002",
        )
    else:
        command = taken()
        command.create_parser("manage.py", name)
        for option in command.replaced:
            yield Warning(
                f"{OURS} and another app both bring the option {option} of {name}; the option of {OURS} is used.",
                hint=f"If both mean the same, do nothing. If not: {FIRST}",
                id="zero_downtime.W003",
            )
