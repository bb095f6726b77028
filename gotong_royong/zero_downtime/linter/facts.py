"""What did a migration do, as PostgreSQL saw it? The trace gathers these values, and the rules judge them.

Tables have the names of ``Meta.db_table``. Tables of before were there before the migration under judgement, or before
the whole deploy that it is part of. Only they have users who may have to wait.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from django.db.migrations import Migration
from django.db.migrations.operations.base import Operation

from ..postgres.locks import BLOCKS
from ..running.states import with_inner
from .code import Code

MODES = list(BLOCKS)
"""From the weakest to the strongest."""

PARTS = {"column": "columns", "constraint": "constraints", "index": "indexes"}
"""The attribute of a table that has its parts of a kind."""


class Direction(StrEnum):
    UP = "up"
    DOWN = "down"


class Lock(NamedTuple):
    table: str
    mode: str

    @property
    def blocks(self) -> str:
        """What it blocks: ``writes``, ``reads and writes``, or an empty text."""
        return BLOCKS[self.mode]

    @property
    def sql(self) -> str:
        """The mode as PostgreSQL's manual writes it: ACCESS EXCLUSIVE."""
        words = "".join(f" {letter}" if letter.isupper() else letter for letter in self.mode.removesuffix("Lock"))
        return words.strip().upper()


class Column(NamedTuple):
    name: str
    type: str
    not_null: bool
    default: str | None
    identity: bool
    generated: bool

    @property
    def fills_itself(self) -> bool:
        return self.default is not None or self.identity or self.generated


class Constraint(NamedTuple):
    """``kind`` is as in pg_constraint: c check, f foreign key, p primary key, u unique, x exclusion."""

    name: str
    kind: str
    valid: bool
    definition: str
    columns: tuple[str, ...]
    target: str | None


class Index(NamedTuple):
    """``columns`` has an empty text for each expression. ``constraint``: whether the index belongs to one."""

    name: str
    valid: bool
    unique: bool
    partial: bool
    columns: tuple[str, ...]
    definition: str
    constraint: bool


class Table(NamedTuple):
    name: str
    node: int | None
    columns: Mapping[str, Column]
    constraints: Mapping[str, Constraint]
    indexes: Mapping[str, Index]

    @property
    def targets(self) -> set[str | None]:
        """The tables that its foreign keys point to."""
        return {constraint.target for constraint in self.constraints.values()}

    def has_other_names(self, then: "Table") -> bool:
        """Whether the table has another name than ``then``, or a column that ``then`` lacks."""
        return self.name != then.name or not self.columns.keys() <= then.columns.keys()


Catalog = Mapping[int, Table]
"""The tables by their OID."""


class Change(NamedTuple):
    """What changed in a table or one of its parts. ``before`` is None if it is new, ``after`` if it is gone."""

    kind: str
    table: str
    name: str
    before: Table | Column | Constraint | Index | None
    after: Table | Column | Constraint | Index | None


@dataclass(frozen=True)
class Statement:
    """One statement and what it did to the tables of before.

    Attributes:
        operation: which of the migration's operations sent it, from 0.
        transaction: statements with the same number ran in one transaction. A number below 0 means that ``migrate``
            runs the statement in a transaction of its own.
        takes: the strongest lock that it took on each table, without those that its transaction already had.
        holds: the strongest lock that its transaction had on each table at its end.
        scans: tables that it read from end to end.
        rewrites: tables that it wrote anew.
        writes: tables whose rows it changed.
        changes: what changed in the tables that it locked more strongly than a write does.
        rows: how many rows it inserted, updated or deleted.
        notices: PostgreSQL's notices, each after its SQLSTATE.
        ends_transaction: whether it ended a transaction that Django had begun.
        rehearsed: whether it ran on made-up rows and was rolled back.
    """

    operation: int
    sql: str
    transaction: int
    takes: tuple[Lock, ...] = ()
    holds: tuple[Lock, ...] = ()
    scans: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    rows: int = 0
    notices: tuple[str, ...] = ()
    ends_transaction: bool = False
    rehearsed: bool = False

    @cached_property
    def held(self) -> dict[str, Lock]:
        return {lock.table: lock for lock in self.holds}

    @cached_property
    def taken(self) -> dict[str, Lock]:
        return {lock.table: lock for lock in self.takes}


@dataclass(frozen=True)
class Failure:
    """Why a migration ended early. ``environment``: whether the scratch database is the reason, not the migration."""

    operation: int
    message: str
    environment: bool = False


@dataclass(frozen=True)
class Pass:
    """What a migration sent in one direction, and the tables that it changed, as they were before and after."""

    direction: Direction
    statements: tuple[Statement, ...] = ()
    failure: Failure | None = None
    before: Catalog = field(default_factory=dict)
    after: Catalog = field(default_factory=dict)
    stumbles: tuple[Failure, ...] = ()
    """Errors that its code raised on made-up rows, and raises on any row."""
    missed: tuple[Failure, ...] = ()
    """Lines of its code that change rows and did not run on made-up rows."""
    enums: tuple[tuple[str, str], ...] = ()
    """Enum types and the labels that they have lost."""

    @cached_property
    def changes(self) -> list[Change]:
        """What changed in the tables."""
        return list(changes(self.before, self.after))


@dataclass(frozen=True)
class Trace:
    """All that is known about one migration.

    Attributes:
        down: None if it cannot be undone.
        running: the models of the code that runs while the migration is applied.
        code_before: the models of the state before the migration.
        written: the models of the state after it.
        catalog: all tables after the migration. The next migration changes it.
        indexed: the columns that earlier migrations of the plan added to tables of before, and then gave an index: by
            table and column, the index and the migration.
        reruns: for each raw operation of a migration that is not atomic, why it fails when it runs twice.
        mismatches: the tables whose new indexes or constraints are not what the models say, and what is different.
        because_of: the first failed migration that it depends on, and why that failed.
        alias: of the connection to the scratch database.
        path: the file.
        own: whether its app is the project's own.
        leaves: the last migrations of its app, if there are several.
    """

    migration: Migration
    up: Pass
    down: Pass | None = None
    running: Code = field(default_factory=Code)
    code_before: Code = field(default_factory=Code)
    written: Code = field(default_factory=Code)
    catalog: Catalog = field(default_factory=dict)
    indexed: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    reruns: Mapping[int, str] = field(default_factory=dict)
    mismatches: tuple[tuple[str, str], ...] = ()
    because_of: str = ""
    alias: str = "default"
    path: str = ""
    own: bool = True
    leaves: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by their names."""
        return {table.name: table for table in self.catalog.values()}

    @property
    def operations(self) -> Iterator[tuple[int, Operation]]:
        """Yield each operation, and those within it, with its place in the migration."""
        for number, operation in enumerate(self.migration.operations):
            yield from ((number, one) for one in with_inner(operation))

    @property
    def passes(self) -> list[Pass]:
        return [self.up, *([self.down] if self.down else [])]


def changes(before: Mapping[Any, Table], after: Mapping[Any, Table]) -> Iterator[Change]:
    """Compare the tables with the same key and yield each part that changed. A new or dropped table is one change."""
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            here = old or new
            if here:
                yield Change("table", here.name, here.name, old, new)
        elif old != new:
            if old.name != new.name:
                yield Change("table", old.name, new.name, old, new)
            for kind, parts in PARTS.items():
                olds, news = getattr(old, parts), getattr(new, parts)
                for name in {**olds, **news}:
                    if olds.get(name) != news.get(name):
                        yield Change(kind, new.name, name, olds.get(name), news.get(name))


def strongest(locks: Iterator[Lock]) -> tuple[Lock, ...]:
    """Keep the strongest lock of each table."""
    best: dict[str, Lock] = {}
    for lock in locks:
        if lock.table not in best or MODES.index(lock.mode) > MODES.index(best[lock.table].mode):
            best[lock.table] = lock
    return tuple(best.values())
