"""How is exactly what a migration did taken back, and what of it stays?

The journal tells what was done. What was there before is left alone, and what was never begun is not taken back. Of an
operation that came to no end only what its statements made can be: what Python has done, nobody knows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from django.db import ProgrammingError
from django.db.migrations import Migration
from django.db.migrations.operations import AddField, CreateModel, DeleteModel, RemoveField, RunPython, RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime import locks
from gotong_royong.zero_downtime.exceptions import NotUndoable
from gotong_royong.zero_downtime.journal import Journal, Object, Past, Told
from gotong_royong.zero_downtime.operations import RunBackfill
from gotong_royong.zero_downtime.schema import SchemaEditor
from gotong_royong.zero_downtime.states import Move, Rolling, transaction_of, with_inner

# What PostgreSQL says where the table, the column or another object is not there.
GONE = {"42P01", "42703", "42704"}


class Left(NamedTuple):
    """What a way back leaves: something of ``ours`` that stays or does not come back, or what was so before us."""

    text: str
    ours: bool = True


def runs_code(operation: Operation) -> bool:
    """Whether the operation does more than to send statements through the schema editor, as far as is known."""
    return not all(
        one.reduces_to_sql and type(one).__module__.startswith(("django.", "gotong_royong.zero_downtime."))
        for one in with_inner(operation)
    )


def has_own_reverse(operation: Operation) -> bool:
    """Whether only its author knows what the operation's way back does."""
    return runs_code(operation) or any(isinstance(one, RunSQL) for one in with_inner(operation))


def is_half_done(migration: Migration, past: Past) -> bool:
    """Whether something of a migration that failed may be there: none, if it is a transaction."""
    begun = [migration.operations[number - 1 : number] for number in past]
    return not migration.atomic and (
        any(told.statements for told in past.values()) or any(runs_code(one) for (one,) in filter(None, begun))
    )


def refuse_irreversible(migration: Migration, past: Past) -> None:
    """Pass if each operation that has come to its end has a way back.

    Raises:
        NotUndoable: names the one that has none.
    """
    for number, operation in enumerate(migration.operations, 1):
        told = past.of(number)
        if told and told.ended and not told.made_nothing and not operation.reversible:
            raise NotUndoable(
                f"{migration} cannot be taken back: {operation.describe()} has no reverse. Nothing was changed. "
                "Give it a reverse_sql or reverse_code, or restore a backup."
            )


def take_back(
    migration: Migration, state: ProjectState, editor: SchemaEditor, journal: Journal, past: Past, run: int | None
) -> Iterator[Left]:
    """Go back over the operations of the migration, newest first; yield what is left.

    Args:
        state: the models before the migration.
        journal: is told what is taken back.
        past: what was done. What is taken back in no transaction is struck out.
        run: whose work to take back; None for everybody's.
    """
    rolling = Rolling(ProjectState(state.clone().models, state.real_apps))
    moves = [(operation, *rolling.step(operation, migration.app_label)) for operation in migration.operations]
    for number, move in reversed(list(enumerate(moves, 1))):
        told = past.of(number)
        if told is None:
            continue
        if run is not None and told.run not in {0, run}:
            yield Left(f"operation {number} of {migration} stays: run {told.run} did it", ours=False)
            continue
        journal.begin(number, move[0])
        yield from _take_back(migration, move, editor, told)
        if not migration.atomic:
            past.taken_back.add(number)
        journal.end()


def _take_back(migration: Migration, move: Move, editor: SchemaEditor, told: Told) -> Iterator[Left]:
    operation, before, after = move
    name = f"{operation.describe()!r} of {migration}"
    if told.skipped:
        yield Left(f"{_listed(told.skipped)} is left alone: it was so before {name}", ours=False)
    if told.made_nothing:
        return
    if not told.ended and not isinstance(operation, RunBackfill):
        if runs_code(operation) or (told.statements and not operation.reversible):
            yield Left(f"what {name} did before it failed stays")
            return
        if not told.statements:
            return
    yield from _not_brought_back(operation, name, told)
    editor.may_touch, editor.left_out = _told_to_touch(operation, told), []
    try:
        with transaction_of(operation, migration, editor):
            operation.database_backwards(migration.app_label, editor, after, before)
        if not migration.atomic:
            editor.run_deferred()
        if told.skipped and isinstance(operation, CreateModel | AddField):
            editor.drop_parts(told.executed)
    except ProgrammingError as error:
        if told.ended or locks.sqlstate(error) not in GONE:
            raise
    finally:
        editor.may_touch = None
    if not told.ended and editor.left_out and isinstance(operation, RunSQL):
        yield Left(f"what {name} did before it failed stays")


def _not_brought_back(operation: Operation, name: str, told: Told) -> Iterator[Left]:
    for one in with_inner(operation):
        if (isinstance(one, RunPython) and one.reverse_code is RunPython.noop is not one.code) or (
            isinstance(one, RunSQL) and one.sql and one.reverse_sql in ("", [])
        ):
            yield Left(f"what {name} did stays: its reverse does nothing")
        elif isinstance(one, DeleteModel | RemoveField) and told.executed:
            yield Left(f"the data that {name} dropped are gone")
    if converted := [object for object in told.executed if object.kind.startswith("TYPE")]:
        yield Left(f"{_listed(converted)}: converted by {name} and converted back, which may have changed values")


def _told_to_touch(operation: Operation, told: Told) -> Callable[[tuple[Object, ...]], bool] | None:
    """Return which objects a way back may touch."""
    if told.ended or isinstance(operation, RunBackfill):
        return (lambda objects: told.skipped.isdisjoint(objects)) if told.skipped else None
    if isinstance(operation, RunSQL) and isinstance(operation.sql, str):
        return None
    return lambda objects: bool(objects) and told.executed.issuperset(objects)


def _listed(objects: Iterable[Object]) -> str:
    return ", ".join(sorted(set(map(str, objects))))
