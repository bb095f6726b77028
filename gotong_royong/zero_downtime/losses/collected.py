"""What would a way back send to the database? It is collected, not executed."""

from collections.abc import Iterator
from typing import Any

from django.db import Error, router
from django.db.migrations import Migration
from django.db.migrations.operations import RunPython

from gotong_royong.zero_downtime.exceptions import summary
from gotong_royong.zero_downtime.executor import Executor
from gotong_royong.zero_downtime.journal import Told
from gotong_royong.zero_downtime.plan import only_looking, states_before
from gotong_royong.zero_downtime.stages import Plan, key_of
from gotong_royong.zero_downtime.states import Move, Rolling
from gotong_royong.zero_downtime.undo import did_nothing


def collected(executor: Executor, plan: Plan) -> Iterator[tuple[Migration, Told, str, bool]]:
    """Yield what the way back says, each with what the journal tells of the way there, and whether it is SQL.

    What is not SQL is said in words. Foreign keys, which Django makes last of all, lose nothing and are left out.
    """
    connection = executor.connection
    with only_looking(connection):
        befores = states_before(executor, plan)
        for migration, _ in plan:
            if type(migration).unapply is not Migration.unapply:
                yield migration, Told(), f"runs code, {type(migration).__module__}", False
                continue
            past, rolling = executor.past(*key_of(migration)), Rolling(befores[migration])
            numbered = [
                (told, move)
                for number, operation in enumerate(migration.operations, 1)
                if (told := past.of(number)) and not did_nothing(operation, told)
                for move in rolling.moves([operation], migration.app_label)
            ]
            with connection.schema_editor(collect_sql=True, atomic=False) as editor:
                for told, move in reversed(numbered):
                    yield from ((migration, told, *said) for said in _said(editor, migration, move))


def _said(editor: Any, migration: Migration, move: Move) -> Iterator[tuple[str, bool]]:
    operation, before, after = move
    is_djangos = type(operation).__module__.startswith("django.")
    if isinstance(operation, RunPython):
        code: Any = operation.reverse_code
        allowed = router.allow_migrate(editor.connection.alias, migration.app_label, **operation.hints)
        if code is not RunPython.noop and allowed:
            code = getattr(code, "func", code)  # of a functools.partial
            yield f"runs code, {code.__module__}.{getattr(code, '__qualname__', code)}", False
    elif operation.reduces_to_sql:
        known = len(editor.collected_sql)
        try:
            operation.database_backwards(migration.app_label, editor, after, before)
        except Exception as error:  # noqa: BLE001  (an operation may raise anything)
            # Django's look up names of indexes and constraints, which the way back may yet have to make.
            if not is_djangos or isinstance(error, Error):
                yield f"{operation.describe()} ({summary(error)})", False
        yield from ((sql, True) for sql in editor.collected_sql[known:])
    elif not is_djangos and not type(operation).__module__.startswith("gotong_royong.zero_downtime."):
        yield f"runs code, {operation.describe()}", False
