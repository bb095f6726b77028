"""How are migrations and their models read, each only once?"""

import hashlib
import os
import sys
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
    """Django's loader, faster where there is nothing to do, and with what the ledger knows of squashes."""

    final: ProjectState | None = None
    """The state after all migrations, once it is known."""
    lost: dict[Key, Key]
    """For each migration that a recorded squash replaces and that has no record, the squash: it is applied.

    Migrations that the ledger knows as taken back are left out: stock Django leaves the record of the squash.
    """

    vouched: dict[Key, Key] = {}
    """For each part of a squash that Django leaves out of the graph but the ledger knows as applied, the squash."""

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
        """Return the applied squashes whose record is lost, with the records or files of some of their parts.

        Django leaves them out of the graph, because some parts seem unapplied. The ledger knows all parts as applied.
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
        """Check what is loaded already; leave it to Django if something is wrong."""
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
    """Return each operation of the file with those that a receiver of ``pre_migrate`` inserted after it.

    So an operation has the same number before and after the receivers run.
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
    """Return the path of the migration's file; empty if there is none."""
    return getattr(sys.modules.get(migration.__module__), "__file__", None) or ""


def checksum(migration: Migration) -> str:
    """Return the SHA-256 of the migration's file; empty if there is none."""
    try:
        # A file object takes twice the time, for each of perhaps a thousand files.
        file = os.open(file_of(migration), os.O_RDONLY)
    except OSError:
        return ""
    try:
        return hashlib.sha256(os.read(file, os.fstat(file).st_size)).hexdigest()
    finally:
        os.close(file)


def is_own(app_label: str) -> bool:
    """Whether the app belongs to the project, and is not an installed package."""
    if app_label not in apps.app_configs:
        return True
    folders = Path(apps.get_app_config(app_label).path).parts
    return not {"site-packages", "dist-packages"} & set(folders)
