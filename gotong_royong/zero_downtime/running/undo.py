"""How is a migration taken back, and what of it stays?

The journal tells what the migration did: only that is taken back, and what existed before stays. Of an operation that
did not end, only the effects of its statements can be taken back; the effects of Python are unknown.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

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
"""Statements that may run any other statement."""
# PostgreSQL's errors for a missing table, column or other object.
GONE = {"42P01", "42703", "42704"}


class Left(NamedTuple):
    """What a rollback leaves. ``ours`` is False if it is not an effect of the run."""

    text: str
    ours: bool = True


def runs_code(operation: Operation) -> bool:
    """Whether the operation may do more than send statements through the schema editor."""
    return not all(
        one.reduces_to_sql and type(one).__module__.startswith(("django.", f"{NAME}.")) for one in with_inner(operation)
    )


def did_nothing(operation: Operation, told: Told) -> bool:
    """Whether the operation surely executed nothing; never true of code."""
    return told.did_nothing and not runs_code(operation)


def is_half_done(migration: Migration | None, past: Past) -> bool:
    """Whether a failed migration may have left effects. Without its file, any of its operations may be code."""
    if past.complete:
        return False
    operations = [operation for operation, *_ in groups(migration)] if migration else []
    begun = [operations[number - 1] for number in past if 0 < number <= len(operations)]
    return any(told.statements for told in past.values()) or len(begun) < len(past) or any(map(runs_code, begun))


def refuse_irreversible(migration: Migration, past: Past) -> None:
    """Check that each operation that ended has a way back.

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
    """Check that the file still has the operations that are done.

    Raises:
        EditedHalfway: names the first that it has not.
    """
    if number := first_edited(migration, past):
        raise EditedHalfway(
            f"Run {past[number].run} did operation {number} of {migration}, and the file was edited there since. "
            "Put that operation back into the file, and write the change into a new operation after it."
        )


def first_edited(migration: Migration, past: Past) -> int | None:
    """Return the number of the first operation that is done and differs from the file's."""
    known = [operation for operation, *_ in groups(migration)]
    for number, told in sorted(past.items()):
        if told.ended and told.digest and [digest(one) for one in known[number - 1 : number]] != [told.digest]:
            return number
    return None


def look_before(operation: Operation, editor: SchemaEditor) -> None:
    """Note which objects that the reverse SQL drops exist already, if the forward SQL does not name what it makes.

    Not after an interrupted try: that one has noted them, and the objects may be its own.
    """
    journal = editor.journal
    for one in with_inner(operation) if journal and not journal.is_repeated else ():
        if isinstance(one, RunSQL) and any(map(_makes_unseen, statements.of_raw_sql(one.sql))):
            for statement in statements.of_raw_sql(one.reverse_sql or ""):
                for object, is_made in statement.changes:
                    if journal and not is_made and editor.look_at(*object) not in {None, UNKNOWN}:
                        journal.skipped(f"{object} is already there", (object,))


def _makes_unseen(statement: Statement) -> bool:
    return not statement.objects and (statement.verb in RUNNING or "OR REPLACE" in statement.outline)


def take_back(
    migration: Migration, state: ProjectState, editor: SchemaEditor, journal: Journal, past: Past, run: int | None
) -> Iterator[Left]:
    """Take back the operations of the migration, newest first; yield what is left.

    Takes the locks of the reverse statements, such as ACCESS EXCLUSIVE for DROP
    (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES).

    Args:
        state: the models before the migration.
        journal: of this step down.
        past: what was done; without a transaction, what is taken back is marked in it.
        run: the run whose work to take back; None for all runs.
    """
    rolling = Rolling(ProjectState(state.clone().models, state.real_apps))
    moves = [[(one, *rolling.step(one, migration.app_label)) for one in group] for group in groups(migration)]
    for number in sorted(past.keys() - set(range(len(moves) + 1))):
        if past[number].was_refused:
            continue
        made = ", ".join(map(str, sorted(past[number].executed))) or "whatever it did"
        yield Left(
            f"operation {number} of {migration}, which run {past[number].run} did, stays, because the file no longer "
            f"has it: {made}. Put the operation back into the file and roll back again, or drop that by hand"
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
        yield Left(f"left alone, because it was so before {name}: {'; '.join(told.reasons)}", ours=False)
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
    """Yield what the way back of an operation does not bring back.

    Args:
        told, back: the journals of the way up and of the way back.
        left_out: what the way back did not touch; None stands for unknown objects.
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
            yield Left(f"{object}: where {name} replaced NULL by a value, the value stays")
        elif object in left_out or (None in left_out and object not in back.executed | told.dropped):
            yield Left(
                f"{object} stays as {name} made it: the statement that takes it back concerns other objects, too"
            )
        elif object in told.dropped - back.executed and object.kind in {"index", "constraint"}:
            new = ", ".join(sorted(map(str, back.executed - told.executed)))
            yield Left(f"{object}, which {name} dropped, is not back under its name{new and f': {new}'}")
    unknown = [sql for sql in told.texts if not statements.objects(sql)] if _has_raw_sql(operation) else []
    if unknown and not told.ended:
        yield Left(f"what {name} did before it failed may stay")
    elif unknown and told.reasons:
        yield Left(f"what {name} did stays where its statements do not name what they make")
    elif not all(map(statements.only_adds, unknown)):
        yield Left(f"what {name} changed or deleted is back only as far as its reverse SQL brings it back")


def _has_raw_sql(operation: Operation) -> bool:
    return any(isinstance(one, RunSQL) for one in with_inner(operation))


def _told_to_touch(operation: Operation, told: Told) -> Callable[[tuple[Object, ...]], bool] | None:
    """Return the test for the objects that a way back may touch; None if it may touch all."""
    if isinstance(operation, RunBackfill) or (told.ended and not told.reasons):
        return None
    if told.ended and not _has_raw_sql(operation):
        return told.skipped.isdisjoint
    if told.ended and any(map(_makes_unseen, statements.of_raw_sql(list(told.texts)))):
        return lambda objects: bool(objects) and told.skipped.isdisjoint(objects)
    return lambda objects: bool(objects) and told.executed.issuperset(objects)


def outcome(run: object, undone: Iterable[Migration], left: Collection[Left]) -> str:
    """Return whether the database is as before the run, and what is left, in words."""
    if any(one.ours for one in left):
        said = f"The database may not be as it was before {run}:"
    else:
        each = [operation for migration in undone for operation in migration.operations]
        has_own = any(runs_code(operation) or _has_raw_sql(operation) for operation in each)
        condition = ", if the reverse SQL and code of these migrations are right" if has_own else ""
        said = f"The database is as it was before {run}{condition}."
    return "\n  ".join([said, *dict.fromkeys(one.text for one in left)])
