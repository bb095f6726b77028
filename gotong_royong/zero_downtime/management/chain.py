"""How does an engine's command keep what another app adds to the same command?

Django takes a command from the first app in INSTALLED_APPS that has one of that name. The engine's command subclasses
the command of the next app, so that app's guards, options and methods stay.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from django.apps import AppConfig, apps
from django.core.management import find_commands
from django.core.management.base import BaseCommand

from .base import ZeroDowntimeCommand

DJANGO = "django.core.management.commands."


class Chained(ZeroDowntimeCommand):
    """The engine's form of one of Django's commands, made on the command that the project would have without it."""

    innermost: tuple[type[BaseCommand], ...] = ()
    """Bases between the other apps' command and Django's: the other command calls their ``handle``."""

    replaced: tuple[str, ...] = ()
    """Options of the other command that this one replaces; known after ``add_arguments``."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        made: Self = super().__new__(on_top(cls))
        return made

    @contextmanager
    def taking(self, parser: ArgumentParser) -> Iterator[None]:
        """Let the options added in the block replace others of the same name; their ``dest`` keeps its default."""
        before, spelled = list(parser._actions), dict(parser._option_string_actions)
        parser._optionals.conflict_handler = "resolve"
        yield
        parser._optionals.conflict_handler = "error"
        now = parser._option_string_actions
        self.replaced = tuple(option for option, action in spelled.items() if now[option] is not action)
        known = {action.dest for action in parser._actions}
        gone = [action for action in before if action not in parser._actions and action.dest not in known]
        parser.set_defaults(**{action.dest: action.default for action in gone})


def on_top(ours: type[Chained]) -> Any:
    """Return our class on the command class of the next app; our class alone if that is not possible."""
    bases: tuple[type[BaseCommand], ...] = (ours,)
    if (found := next_to(ours)) and can_carry(other := found[1], ours):
        bases = (other,) if issubclass(other, ours) else (ours, other)
    bases += ours.innermost
    return type(ours.__name__, bases, {"__module__": ours.__module__}) if len(bases) > 1 else bases[0]


def next_to(ours: type[Chained]) -> tuple[AppConfig, type[BaseCommand]] | None:
    """Return the next app that brings the command and is not a base of ours yet, and its class; None without one."""
    name = _djangos(ours).__module__.removeprefix(DJANGO)
    for config in bringing(name):
        other = command(config.name, name)
        if not issubclass(ours, other):
            return config, other
    return None


def command(app: str, name: str) -> Any:
    """Return the class of the app's command of that name."""
    return import_module(f"{app}.management.commands.{name}").Command


def can_carry(other: type[BaseCommand], ours: type[Chained]) -> bool:
    """Whether ours can call the other command as it calls Django's: it must subclass Django's, too."""
    return issubclass(other, _djangos(ours))


def bringing(name: str) -> Iterator[AppConfig]:
    """Yield the apps with a command of that name, in the order of INSTALLED_APPS."""
    for config in apps.get_app_configs():
        if name in find_commands(str(Path(config.path, "management"))):
            yield config


def _djangos(ours: type[Chained]) -> type:
    return next(base for base in ours.__mro__ if base.__module__.startswith(DJANGO))


@contextmanager
def in_place(module: ModuleType, **ours: Any) -> Iterator[None]:
    """Let what stands in a module of Django's take ours, by these names: it knows its own from there."""
    before = {name: getattr(module, name) for name in ours}
    try:
        for name, value in ours.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
