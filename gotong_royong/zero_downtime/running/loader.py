"""How are the migrations read, and the models that they lead to found, without doing anything twice?"""

import gc
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from ..stages import Key
from . import history


class Loader(MigrationLoader):
    """Django's loader, in less time: nobody waits for a deploy's ``migrate`` that finds nothing to do."""

    final: ProjectState | None = None
    """What all migrations lead to, once somebody has found that out."""
    lost: dict[Key, Key]
    """What a recorded squash replaces and is not recorded itself, each with the squash: it was, when that was.

    But not what the ledger knows to be taken back since: stock Django leaves the row of the squash.
    """

    vouched: dict[Key, Key] = {}
    """What the ledger knows to be applied of squashes that Django leaves out of the graph, each with the squash."""

    @property
    def applied_migrations(self) -> dict[Key, Any]:
        return self._applied

    @applied_migrations.setter
    def applied_migrations(self, applied: dict[Key, Any]) -> None:
        applied = applied or {}  # none before they are read
        squashes = [key for key in applied if key in self.disk_migrations and self.disk_migrations[key].replaces]
        replaced = {part: key for key in squashes for part in history.parts(self, self.disk_migrations[key])}
        self._applied, lost = applied, {part: key for part, key in replaced.items() if part not in applied}
        if lost and self.connection:
            memory = history.remembered(self.connection.alias, self)
            lost = {part: key for part, key in lost.items() if not history.is_taken_back(self, part, memory)}
        self.lost = {**lost, **{part: key for part, key in self.vouched.items() if part not in applied}}
        self._applied = {**applied, **{part: applied.get(key) for part, key in self.lost.items()}}

    def load_disk(self) -> None:
        super().load_disk()
        for migration in self.disk_migrations.values():
            migration.of_file = tuple(migration.operations)  # type: ignore[attr-defined]

    def build_graph(self) -> None:
        self.final, self.vouched = None, {}
        super().build_graph()
        if vouched := {part: key for key in self._torn() for part in history.parts(self, self.disk_migrations[key])}:
            self.vouched = vouched
            super().build_graph()

    def _torn(self) -> list[Key]:
        """Return the squashes that replace what has no file any more, where rows of that and their own are lost.

        Django leaves them out of the graph, for it takes the rest of them for applied. The ledger vouches for all.
        """
        squashes = self.disk_migrations.keys() - self.graph.nodes.keys() - self.applied_migrations.keys()
        torn = [
            key
            for key in squashes
            if not {*history.parts(self, self.disk_migrations[key])} <= self.disk_migrations.keys()
        ]
        memory = history.remembered(self.connection.alias, self) if self.connection and torn else {}
        return [key for key in torn if history.vouching(self, key, memory)]

    def check_consistent_history(self, connection: BaseDatabaseWrapper) -> None:
        """Look into what was read from this database already; let Django say what is wrong with it."""
        applied, nodes = self.applied_migrations, self.graph.node_map
        known = (nodes[key] for key in applied if key in nodes)
        if connection is not self.connection or any(node.key not in applied for one in known for node in one.parents):
            super().check_consistent_history(connection)

    def project_state(self, nodes: Any = None, at_end: bool = True) -> ProjectState:
        if self.final is not None and nodes is None and at_end:
            return self.final.clone()
        state: ProjectState = super().project_state(nodes, at_end)
        return state


def groups(migration: Migration) -> list[list[Operation]]:
    """Return the operations that the file has, each with those that a receiver of ``pre_migrate`` put after it.

    So an operation has the same number whether receivers have been called or not.
    """
    of_file = {id(operation) for operation in getattr(migration, "of_file", migration.operations)}
    found: list[list[Operation]] = []
    for operation in migration.operations:
        if found and id(operation) not in of_file:
            found[-1].append(operation)
        else:
            found.append([operation])
    return found


def file_of(migration: Migration) -> str:
    """Return the path of the file that the migration stands in; nothing if there is none."""
    return getattr(sys.modules.get(migration.__module__), "__file__", None) or ""


def checksum(migration: Migration) -> str:
    """Return the SHA-256 of the file that the migration stands in; nothing if there is none."""
    try:
        # A file object for each of a thousand would take twice the time.
        file = os.open(file_of(migration), os.O_RDONLY)
    except OSError:
        return ""
    try:
        return hashlib.sha256(os.read(file, os.fstat(file).st_size)).hexdigest()
    finally:
        os.close(file)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Let Python not look for garbage while so much is loaded that stays, nor later among that.

    Looking takes a tenth of the time of a ``migrate`` that finds nothing to do. ``gc.unfreeze`` takes it back.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


def is_own(app_label: str) -> bool:
    """Whether the app belongs to the project, and was not installed as a package."""
    if app_label not in apps.app_configs:
        return True
    folders = Path(apps.get_app_config(app_label).path).parts
    return not {"site-packages", "dist-packages"} & set(folders)
