"""What would a way back send to the database?"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.db import Error
from django.db.migrations import Migration
from django.db.migrations.operations import RunPython, RunSQL

from ...apps import NAME
from ...exceptions import summary
from ...operations import RunBackfill
from ...postgres.statements import of_raw_sql
from ...stages import Plan, key_of
from ..executor import Executor
from ..plan import function_of, named, only_looking, states_before
from ..states import Move, Rolling
from ..undo import did_nothing
from .reader import Reader


def way_back(executor: Executor, plan: Plan) -> Reader:
    """Return what the plan down destroys, and where it must fail.

    Counts rows under ACCESS SHARE (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES), for
    which it waits LOCK_TIMEOUT at most.

    Args:
        plan: steps down, newest first, without those that were only recorded.
    """
    found = Reader(executor.connection)
    for take_down in list(_said(executor, plan, found)):
        take_down()
    return found


def _said(executor: Executor, plan: Plan, found: Reader) -> Iterator[Callable[[], None]]:
    """Yield calls that give the statements of each operation to the reader, the last operation first."""
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
            raw: list[Any] = [move[0].sql for _, move in moves if isinstance(move[0], RunSQL)]
            made = [object for sql in raw for statement in of_raw_sql(sql) for object in statement.objects]
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


def _back(editor: Any, migration: Migration, move: Move) -> Iterator[tuple[str, bool]]:
    """Yield the statements of the way back of an operation with True; words for what is not SQL with False."""
    operation, before, after = move
    known, is_djangos = len(editor.collected_sql), type(operation).__module__.startswith("django.")
    if isinstance(operation, RunPython) and not isinstance(operation, RunBackfill):
        if called := function_of(operation, operation.reverse_code, migration.app_label, editor.connection):
            yield f"runs code, {named(called)}", False
    elif operation.reduces_to_sql:
        try:
            operation.database_backwards(migration.app_label, editor, after, before)
        except Exception as error:  # noqa: BLE001  (an operation may raise anything)
            # Django's operations look up names of indexes and constraints, which the way back may make before.
            if not is_djangos or isinstance(error, Error):
                yield f"{operation.describe()} ({summary(error)})", False
        yield from ((sql, True) for sql in editor.collected_sql[known:])
    elif not is_djangos and not type(operation).__module__.startswith(f"{NAME}."):
        yield f"runs code, {operation.describe()}", False
