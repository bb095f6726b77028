"""Does every room import only from its own row of the house, or the rows above it?"""

import ast
from pathlib import Path

import pytest

import gotong_royong.zero_downtime

pytestmark = pytest.mark.once

HOUSE = Path(gotong_royong.zero_downtime.__file__).parent
ROWS = [
    {"conf", "exceptions", "programs", "apps"},
    {"statements", "changes", "journal", "stages", "locks", "catalog", "definitions", "effects", "schema", "editors"},
    {"backstop", "watchdog", "code", "guard"},
    {"models", "ledger", "history", "loader"},
    {"backfills"},
    {"operations"},
    {"autodetector", "mistakes", "linter", "states"},
    {"rollback", "recall", "undo", "progress", "executor", "plan", "losses", "backups", "signals"},
    {"management", "reports", "tasks", "admin", "checks"},
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gotong_royong"):
            rooms = node.module.removeprefix("gotong_royong.zero_downtime").strip(".").split(".")
            assert node.module.startswith("gotong_royong.zero_downtime"), f"{path} imports {node.module}"
            yield from [rooms[0]] if rooms[0] else [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] in {"accounts", "tasks", "contributions"} for name in node.names)


def row_of(room):
    return next(number for number, row in enumerate(ROWS) if room in row)


def test_no_room_imports_from_a_row_below():
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room not in {"__init__", "migrations"}:
            for other in imported(path):
                assert row_of(other) <= row_of(room), f"{path.name} imports {other}"


def test_every_room_has_its_row():
    rooms = {path.stem if path.is_file() else path.name for path in HOUSE.iterdir() if path.suffix in {".py", ""}}
    assert rooms - {"__init__", "__pycache__", "migrations", ".mypy_cache", "templates"} == set.union(*ROWS)
