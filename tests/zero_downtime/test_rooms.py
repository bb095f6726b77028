"""Does every room import only from rooms before it, in its own wing and in others?"""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

from gotong_royong import zero_downtime

pytestmark = pytest.mark.once

HOUSE = Path(zero_downtime.__file__).parent
ENGINE = zero_downtime.__name__
WINGS = {
    "conf": "",
    "exceptions": "",
    "apps": "",
    "postgres": "statements changes journal locks catalog programs definitions effects schema editors",
    "stages": "",
    "models": "",
    "backfills": (
        "declarations ranges statements changes sizes throttle batches control verification worker pool inline"
    ),
    "operations": "backfills python waivers",
    "running": (
        "backstop watchdog code guard history loader ledger states diagnosis signals undo recall progress rollback "
        "backups executor plan losses reports"
    ),
    "linter": (
        "code facts names registry sizes queries lock_probe sandbox observer failures reached rows earlier_runs "
        "differences server scratch runner trace selection apart reports rules judgement"
    ),
    "authoring": "statements rewrites pieces autodetector writer",
    "tasks": "",
    "admin": "",
    "management": "base chain consent commands",
    "checks": "",
}
ORDER = [path for wing, rooms in WINGS.items() for path in [*(f"{wing}.{room}" for room in rooms.split()), wing]]
"""The face of a wing, its ``__init__``, comes after its rooms."""


def named(path):
    parts = (ENGINE, *path.relative_to(HOUSE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ROOMS = {
    named(path): path
    for path in sorted(HOUSE.rglob("*.py"))
    if "migrations" not in path.parts and path != HOUSE / "__init__.py"
}


def place(module):
    """Return the place in the order of the room that has this module, or this name in it."""
    parts = module.removeprefix(ENGINE).strip(".").split(".")
    path = ".".join(parts[:2])
    return ORDER.index(path if path in ORDER else parts[0])


def imported(room):
    """Yield what a room imports from others; what is imported only for types does not count."""
    path = ROOMS[room]
    tree = ast.parse(path.read_text())
    package = room if path.name == "__init__.py" else room.rpartition(".")[0]
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node not in for_types:
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{name.name}" for name in node.names)


def test_every_room_imports_only_from_rooms_before_it():
    late = [(room, other) for room in ROOMS for other in imported(room) if place(other) > place(room)]
    assert late == [(f"{ENGINE}.apps", f"{ENGINE}.checks")]  # Django wants an app to register its checks


def test_no_room_names_another_part_of_the_project():
    roots = {"gotong_royong", "accounts", "tasks", "contributions", "tests"}
    for room, path in ROOMS.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & roots, room


def test_every_room_has_its_place():
    parts = {".".join(room.removeprefix(f"{ENGINE}.").split(".")[:2]) for room in ROOMS}
    assert parts == set(ORDER)
