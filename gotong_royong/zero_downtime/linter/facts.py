"""What did a migration do, as PostgreSQL itself saw it? Values only: the trace gathers them, the rules judge them.

Tables are named as ``Meta.db_table`` names them. Those of before are the tables that were there before the migration
under judgement, or before the whole deploy that it is part of: only they have users who can be made to wait.
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
"""The attributes of a table that have its parts, by the kind of these."""


class Direction(StrEnum):
    UP = "up"
    DOWN = "down"


class Lock(NamedTuple):
    table: str
    mode: str

    @property
    def blocks(self) -> str:
        """Whom it keeps waiting: ``writes``, ``reads and writes``, or nobody."""
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
    """``columns`` has an empty text for an expression; ``constraint`` says whether it is one's."""

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
        """Whether the table has not the name, or all the columns, that it has ``then``."""
        return self.name != then.name or not self.columns.keys() <= then.columns.keys()


Catalog = Mapping[int, Table]
"""The tables by their OID."""


class Change(NamedTuple):
    """What became of a table, or of one of its parts; ``before`` or ``after`` is None if there was or is none."""

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
        transaction: statements of one number ran in one transaction; below 0, it was rehearsed in one, and has none.
        takes: the strongest lock that it took on each table, beyond those that its transaction had.
        holds: the strongest lock that its transaction had on each table at its end.
        scans: tables it read from end to end. rewrites: tables it wrote anew. writes: tables whose rows it changed.
        changes: of the tables that were locked by more than a write.
        rows: how many rows it inserted, updated or deleted.
        notices: what PostgreSQL remarked.
        ends_transaction: whether it ended a transaction that Django had begun.
        rehearsed: whether it ran once more, where the tables had rows, and was undone.
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
    """Why a migration came to no end: ``environment`` if that is the scratch database's fault, not the migration's."""

    operation: int
    message: str
    environment: bool = False


@dataclass(frozen=True)
class Pass:
    """A migration in one direction: what it sent, and the tables that it changed as they were before and after."""

    direction: Direction
    statements: tuple[Statement, ...] = ()
    failure: Failure | None = None
    before: Catalog = field(default_factory=dict)
    after: Catalog = field(default_factory=dict)
    stumbles: tuple[Failure, ...] = ()
    """How its code failed where the tables had rows, for a reason that is not in the rows."""
    missed: tuple[Failure, ...] = ()
    """What of its code changes rows and did not run, though the tables had rows."""
    enums: tuple[tuple[str, str], ...] = ()
    """Labels that enum types had before and have no longer."""

    @cached_property
    def changes(self) -> list[Change]:
        """What became of the tables that are not as they were before."""
        return list(changes(self.before, self.after))


@dataclass(frozen=True)
class Trace:
    """All that is known about one migration.

    Attributes:
        down: None if it cannot be undone.
        running: what the code names that runs when the migration is applied.
        code_before: what the state before the migration names, and ``written`` that after it.
        catalog: all tables, as they are after the migration; the next one changes it.
        indexed: the columns that earlier migrations of the plan added to tables of before, and then gave an index: by
            table and column, the index and the migration.
        reruns: for each raw operation of a migration that is not atomic, why it fails when it runs twice.
        otherwise: the tables whose new indexes or constraints are not what the models say, and what is different.
        because_of: the first migration it depends on that did not run, or not to its end, and why.
        alias: of the connection to the scratch database.
        path: the file. own: whether its app is the project's own. leaves: those of its app, if there are several.
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
    otherwise: tuple[tuple[str, str], ...] = ()
    because_of: str = ""
    alias: str = "default"
    path: str = ""
    own: bool = True
    leaves: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Return all tables by their names."""
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
    """Yield what is different, part by part, of tables with the same key; one that is new or gone is one change."""
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
