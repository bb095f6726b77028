"""What in the settings of a project would keep the engine from doing what it promises?"""

from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register
from django.core.management import find_commands, get_commands

OURS = "gotong_royong.zero_downtime"
FIRST = "The one whose app comes first in INSTALLED_APPS is used: change that, or call one of them otherwise."


@register(Tags.commands)
def commands(**_: Any) -> Iterator[CheckMessage]:
    """Say which of our commands another app's keeps away, and which of another app's ours keeps away."""
    from gotong_royong.zero_downtime import chain, management

    for name in find_commands(management.__path__[0]):
        others = [config.name for config in chain.bringing(name) if config.name != OURS]
        if others and isinstance(used := get_commands()[name], str):
            yield from _together(name, used, others[0], chain.command(OURS, name))


def _together(name: str, used: str, other: str, ours: type) -> Iterator[CheckMessage]:
    """Say what of one of our commands, and of that of the first other app, is lost.

    Args:
        used: the app whose command of that name Django takes.
    """
    from gotong_royong.zero_downtime import chain

    is_chained, taken = issubclass(ours, chain.Chained), chain.command(used, name)
    if not issubclass(taken, ours):
        then = "then both are used" if is_chained else f"then that of {used} is not used"
        yield Warning(
            f"manage.py {name} is the command of {used}, so that of {OURS} is not used and does nothing.",
            hint=f"Put {OURS!r} before {used!r} in INSTALLED_APPS; {then}.",
            id="zero_downtime.W001",
        )
    elif not is_chained:
        yield Warning(f"{OURS} and {other} both bring a command {name}.", hint=FIRST, id="zero_downtime.W002")
    elif (beneath := chain.next_to(taken)) and not chain.can_carry(beneath[1], taken):
        yield Warning(
            f"manage.py {name} is the command of {used}, so that of {beneath[0].name} is not used: "
            "nothing of it can be kept, as it is not made on Django's.",
            hint=FIRST,
            id="zero_downtime.W002",
        )
    else:
        command = taken()
        command.create_parser("manage.py", name)
        for option in command.replaced:
            yield Warning(
                f"{OURS} and another app both bring the option {option} of {name}; the former's is used.",
                hint=f"Nothing is to be done if both mean the same. If not: {FIRST}",
                id="zero_downtime.W003",
            )
