"""What would a way back send to the database? It is collected, not executed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.db import Error, router
from django.db.migrations import Migration
from django.db.migrations.operations import RunPython, RunSQL

from ...apps import NAME
from ...exceptions import summary
from ...operations import RunBackfill
from ...postgres.statements import Object, split
from ...stages import Plan, key_of
from ..executor import Executor
from ..plan import only_looking, states_before
from ..states import Move, Rolling
from ..undo import did_nothing
from .reader import Reader


def way_back(executor: Executor, plan: Plan) -> Reader:
    """Return what the plan back destroys of what is there now, and where it must fail.

    Counts row by row, under ACCESS SHARE, and waits for that no longer than the lock timeout.

    Args:
        plan: steps down, newest first, without those of which only the record goes.
    """
    found = Reader(executor.connection)
    for take_down in list(_said(executor, plan, found)):
        take_down()
    return found


def _said(executor: Executor, plan: Plan, found: Reader) -> Iterator[Callable[[], None]]:
    """Yield what is to be taken down of each operation, the last one first, and of what Django does at the end."""
    connection = executor.connection
    with only_looking(connection):
        befores = states_before(executor, plan)
        for migration, _ in plan:
            if type(migration).unapply is not Migration.unapply:
                yield partial(found.not_told, migration, f"runs code, {type(migration).__module__}")
                continue
            past, rolling = executor.past(*key_of(migration)), Rolling(befores[migration])
            moves = [
                (told, move)
                for number, operation in enumerate(migration.operations, 1)
                if (told := past.of(number)) and not did_nothing(operation, told)
                for move in rolling.moves([operation], migration.app_label)
            ]
            made = {object for _, move in moves for object in _made(connection, migration, move)}
            with connection.schema_editor(collect_sql=True, atomic=False) as editor:
                for told, move in reversed(moves):
                    own = made if isinstance(move[0], RunSQL) else None
                    for said, is_sql in _back(editor, migration, move):
                        yield (
                            partial(found.read, migration, said, told.skipped, own)
                            if is_sql
                            else partial(found.not_told, migration, said)
                        )
                yield from (partial(found.read, migration, str(sql)) for sql in editor.deferred_sql)


def _made(connection: Any, migration: Migration, move: Move) -> list[Object]:
    """Return what the SQL of an operation makes, as far as it says so."""
    operation, before, after = move
    with connection.schema_editor(collect_sql=True, atomic=False) as editor:
        if isinstance(operation, RunSQL):
            operation.database_forwards(migration.app_label, editor, before, after)
    return [object for sql in editor.collected_sql for statement in split(sql) for object in statement.objects]


def _back(editor: Any, migration: Migration, move: Move) -> Iterator[tuple[str, bool]]:
    """Yield what the way back of an operation says, and whether it is SQL; what is not is said in words."""
    operation, before, after = move
    known, is_djangos = len(editor.collected_sql), type(operation).__module__.startswith("django.")
    if isinstance(operation, RunPython) and not isinstance(operation, RunBackfill):
        code: Any = operation.reverse_code
        allowed = router.allow_migrate(editor.connection.alias, migration.app_label, **operation.hints)
        if code is not RunPython.noop and allowed:
            code = getattr(code, "func", code)  # of a functools.partial
            yield f"runs code, {code.__module__}.{getattr(code, '__qualname__', code)}", False
    elif operation.reduces_to_sql:
        try:
            operation.database_backwards(migration.app_label, editor, after, before)
        except Exception as error:  # noqa: BLE001  (an operation may raise anything)
            # Django's look up names of indexes and constraints, which the way back may yet have to make.
            if not is_djangos or isinstance(error, Error):
                yield f"{operation.describe()} ({summary(error)})", False
        yield from ((sql, True) for sql in editor.collected_sql[known:])
    elif not is_djangos and not type(operation).__module__.startswith(f"{NAME}."):
        yield f"runs code, {operation.describe()}", False
