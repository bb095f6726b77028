"""How is exactly what a migration did taken back, and what of it stays?

The journal tells what was done. What was there before is left alone, and what was never begun is not taken back. Of an
operation that came to no end only what its statements made can be: what Python has done, nobody knows.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

from django.db import ProgrammingError
from django.db.migrations import Migration
from django.db.migrations.operations import AddField, CreateModel, DeleteModel, RemoveField, RunPython, RunSQL
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from ..apps import NAME
from ..exceptions import EditedHalfway, NotUndoable
from ..operations import RunBackfill
from ..postgres import locks, statements
from ..postgres.effects import UNKNOWN
from ..postgres.journal import ALONG, Journal, Past, Told, digest
from ..postgres.schema import SchemaEditor
from ..postgres.statements import Object, Statement
from .loader import groups
from .states import Move, Rolling, transaction_of, with_inner

RUNNING = {"DO", "CALL", "SELECT", "WITH"}
"""Statements that may run any other."""
# What PostgreSQL says where the table, the column or another object is not there.
GONE = {"42P01", "42703", "42704"}


class Left(NamedTuple):
    """What a way back leaves: something of ``ours`` that stays or does not come back, or what was so before us."""

    text: str
    ours: bool = True


def runs_code(operation: Operation) -> bool:
    """Whether the operation does more than to send statements through the schema editor, as far as is known."""
    return not all(
        one.reduces_to_sql and type(one).__module__.startswith(("django.", f"{NAME}.")) for one in with_inner(operation)
    )


def did_nothing(operation: Operation, told: Told) -> bool:
    """Whether it is known that the operation has executed nothing; of code that is never known."""
    return told.did_nothing and not runs_code(operation)


def has_own_reverse(operation: Operation) -> bool:
    """Whether only its author knows what the operation's way back does."""
    return runs_code(operation) or any(isinstance(one, RunSQL) for one in with_inner(operation))


def is_half_done(migration: Migration | None, past: Past) -> bool:
    """Whether something of a migration that failed may be there. Without its file any code may have done something."""
    if past.complete:
        return False
    operations = [operation for operation, *_ in groups(migration)] if migration else []
    begun = [operations[number - 1] for number in past if 0 < number <= len(operations)]
    return any(told.statements for told in past.values()) or len(begun) < len(past) or any(map(runs_code, begun))


def refuse_irreversible(migration: Migration, past: Past) -> None:
    """Pass if each operation that has come to its end has a way back.

    Raises:
        NotUndoable: names the one that has none.
    """
    for number, (operation, *_) in enumerate(groups(migration), 1):
        told = past.of(number)
        if told and told.ended and not did_nothing(operation, told) and not operation.reversible:
            raise NotUndoable(
                f"{migration} cannot be taken back: {operation.describe()} has no reverse. Nothing was changed. "
                "Give it a reverse_sql or reverse_code, or restore a backup."
            )


def refuse_edited(migration: Migration, past: Past) -> None:
    """Make sure that the operations that have been done are still those of the file.

    Raises:
        EditedHalfway: if one is not.
    """
    if number := first_edited(migration, past):
        raise EditedHalfway(
            f"Run {past[number].run} has done operation {number} of {migration}, and by now the file says something "
            "else there. Put that operation back into the file, and bring the change in a new one."
        )


def first_edited(migration: Migration, past: Past) -> int | None:
    """Return the number of the first operation that has been done and is another one in the file now."""
    known = [operation for operation, *_ in groups(migration)]
    for number, told in sorted(past.items()):
        if told.ended and told.digest and [digest(one) for one in known[number - 1 : number]] != [told.digest]:
            return number
    return None


def look_before(operation: Operation, editor: SchemaEditor) -> None:
    """Write down what is there already of that which reverse SQL drops, where nobody can tell what the SQL makes.

    What an earlier, interrupted try has found then is known still, and what it has made was not there before it.
    """
    is_first = editor.journal is not None and not editor.journal.is_repeated
    for one in with_inner(operation):
        if is_first and editor.journal and isinstance(one, RunSQL) and any(map(_makes_unseen, _statements(one.sql))):
            for statement in _statements(one.reverse_sql or ""):
                for object, is_made in statement.changes:
                    if not is_made and editor.look_at(*object) not in {None, UNKNOWN}:
                        editor.journal.skipped(f"{object} is already there", (object,))


def _statements(sql: Any) -> list[Statement]:
    each = [sql] if isinstance(sql, str) else [one if isinstance(one, str) else one[0] for one in sql]
    return [statement for text in each for statement in statements.split(text)]


def _makes_unseen(statement: Statement) -> bool:
    return not statement.objects and (statement.verb in RUNNING or "OR REPLACE" in statement.outline)


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
    moves = [[(one, *rolling.step(one, migration.app_label)) for one in group] for group in groups(migration)]
    for number in sorted(past.keys() - set(range(len(moves) + 1))):
        if past[number].was_refused:
            continue
        made = ", ".join(map(str, sorted(past[number].executed))) or "whatever it did"
        yield Left(
            f"operation {number} of {migration}, which run {past[number].run} did, stays, for the file has it no more: "
            f"{made}. Put the operation back into the file and roll back again, or drop that by hand"
        )
    for number, group in reversed(list(enumerate(moves, 1))):
        told = past.of(number)
        if told is None:
            continue
        if run is not None and told.run not in {0, run}:
            yield Left(f"operation {number} of {migration} stays: run {told.run} did it", ours=False)
            continue
        journal.begin(number, group[0][0])
        for move in reversed(group):
            yield from _take_back(migration, move, editor, journal, told)
        if not migration.atomic:
            past.taken_back.add(number)
        journal.end()


def _take_back(migration: Migration, move: Move, editor: SchemaEditor, journal: Journal, told: Told) -> Iterator[Left]:
    operation, before, after = move
    name = f"{operation.describe()!r} of {migration}"
    is_code = runs_code(operation)
    if told.reasons:
        yield Left(f"left alone, for so it was before {name}: {'; '.join(told.reasons)}", ours=False)
    if did_nothing(operation, told):
        return
    if not told.ended and not isinstance(operation, RunBackfill) and (is_code or not operation.reversible):
        yield Left(f"what {name} did before it failed may stay")
        return
    editor.may_touch, editor.left_out = _told_to_touch(operation, told), set()
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
    yield from _not_brought_back(operation, name, told, journal.told[journal.number], editor.left_out)


def _not_brought_back(
    operation: Operation, name: str, told: Told, back: Told, left_out: set[Object | None]
) -> Iterator[Left]:
    """Yield what the way back over an operation does not bring back.

    Args:
        told, back: what the journal tells of the way there and of the way back.
        left_out: what the way back was not allowed to touch; None for what is not known.
    """
    data = sorted(str(object) for object in told.dropped if object.kind in {"table", "column"})
    for one in with_inner(operation):
        if (isinstance(one, RunPython) and one.reverse_code is RunPython.noop is not one.code) or (
            isinstance(one, RunSQL) and one.sql and one.reverse_sql in ("", [])
        ):
            yield Left(f"what {name} did stays: its reverse does nothing")
        elif isinstance(one, DeleteModel | RemoveField | RunSQL) and data:
            yield Left(f"the data of {', '.join(data)} are gone: {name} dropped them")
    for object in sorted(told.executed):
        if object.kind == ALONG:
            yield Left(f"{object.name}, which went along with what {name} dropped, does not come back")
        elif object.kind.startswith("TYPE"):
            yield Left(f"{object}: {name} converted it, and it is converted back, which may have changed values")
        elif object.kind.startswith("values"):
            yield Left(f"{object}: where there was NULL, what {name} put there stays")
        elif object in left_out or (None in left_out and object not in back.executed | told.dropped):
            yield Left(f"{object} stays as {name} made it: what would change it back concerns more than that")
        elif object in told.dropped - back.executed and object.kind in {"index", "constraint"}:
            new = ", ".join(sorted(map(str, back.executed - told.executed)))
            yield Left(f"{object}, which {name} dropped, is not back under its name{new and f': {new}'}")
    unknown = [sql for sql in told.texts if not statements.objects(sql)] if _has_raw_sql(operation) else []
    if unknown and not told.ended:
        yield Left(f"what {name} did before it failed may stay")
    elif unknown and told.reasons:
        yield Left(f"what {name} did stays, as far as its statements do not name what they make")
    elif not all(map(statements.only_adds, unknown)):
        yield Left(f"what {name} changed or deleted is back only as far as its reverse SQL brings it back")


def _has_raw_sql(operation: Operation) -> bool:
    return any(isinstance(one, RunSQL) for one in with_inner(operation))


def _told_to_touch(operation: Operation, told: Told) -> Callable[[tuple[Object, ...]], bool] | None:
    """Return which objects a way back may touch."""
    if isinstance(operation, RunBackfill) or (told.ended and not told.reasons):
        return None
    if told.ended and not _has_raw_sql(operation):
        return told.skipped.isdisjoint
    if told.ended and any(map(_makes_unseen, _statements(list(told.texts)))):
        return lambda objects: bool(objects) and told.skipped.isdisjoint(objects)
    return lambda objects: bool(objects) and told.executed.issuperset(objects)


def outcome(run: object, undone: Iterable[Migration], left: Collection[Left]) -> str:
    """Say how the database is after the run's migrations were taken back, and what is left."""
    if any(one.ours for one in left):
        said = f"The database may not be as it was before {run}:"
    else:
        has_own = any(has_own_reverse(operation) for migration in undone for operation in migration.operations)
        condition = ", if the reverse SQL and code of these migrations are right" if has_own else ""
        said = f"The database is as it was before {run}{condition}."
    return "\n  ".join([said, *dict.fromkeys(one.text for one in left)])
