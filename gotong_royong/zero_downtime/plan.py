"""What would a plan do to this database? For each step its statements, and the tables it touches that are there.

Nothing is written and no lock kept: Django's schema editor collects the statements, and what it or an operation asks
the database meanwhile is asked in transactions that are read-only. Python is named, not run.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import truncate_name
from django.db.migrations import Migration
from django.db.migrations.operations import RunPython
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime import catalog, locks
from gotong_royong.zero_downtime.catalog import Table
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import in_full
from gotong_royong.zero_downtime.executor import Executor
from gotong_royong.zero_downtime.stages import Plan, Stage, key_of
from gotong_royong.zero_downtime.statements import NAME, Statement, split
from gotong_royong.zero_downtime.states import Move, Rolling

# Where an outline names a table, an index or a foreign key: after one of these words, or in a list there.
MENTION = re.compile(
    r"\b(?:TABLE|INDEX|VIEW|CONSTRAINT|REFERENCES|ON|FROM|JOIN|INTO|UPDATE|OF|PARTITION|INHERIT|LIKE"
    r"|LOCK|TRUNCATE|COPY|CLUSTER|ANALYZE|VACUUM|FULL) "
    r"(?:(?:TABLE|INDEX|VIEW|CONSTRAINT|COLUMN|IF|NOT|EXISTS|ONLY|CONCURRENTLY) )*"
    rf"(?P<names>{NAME}(?: , {NAME})*)"
)
GET_MODEL = re.compile(r"""\bget_model\(\s*["'](\w+)(?:["']\s*,\s*["']|\.)(\w+)["']""")


@dataclass(frozen=True)
class PlannedStep:
    """One migration of a plan. ``statements`` are SQL, or SQL comments that say in words what is not SQL.

    Those of a step that is ``atomic`` are one transaction; a step that is ``faked`` is only recorded.
    """

    app: str
    name: str
    direction: str
    stage: Stage
    atomic: bool
    faked: bool
    statements: list[str]
    tables: list[Table]

    def __str__(self) -> str:
        remarks = [self.direction, self.stage.replace("_", "-")]
        remarks += ["not in one transaction"] * (not self.atomic) + ["only recorded"] * self.faked
        return f"{self.app}.{self.name} ({', '.join(remarks)})"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "tables": [table._asdict() for table in self.tables]}


class Planner(Executor):
    """An executor that remembers the plan it was asked for last."""

    plan: Plan

    def migration_plan(self, targets: Any, clean_start: bool = False) -> Plan:
        self.plan = super().migration_plan(targets, clean_start)
        return self.plan


def look_ahead(executor: Executor, plan: Plan, *, fake: bool = False, fake_initial: bool = False) -> list[PlannedStep]:
    """Return what each step of the plan would do to the executor's database, which is only read.

    Args:
        fake: as if every step were only recorded.
        fake_initial: as if those initial ones were whose tables are there already.

    Raises:
        ImpossibleStage: if a migration says a stage that is none.
    """
    connection, changed, drafts, stages = executor.connection, set[str](), [], executor.stages_of(plan)
    with only_looking(connection) as asked:
        befores = states_before(executor, plan) if any(backwards for _, backwards in plan) else {}
        rolling = Rolling(executor._create_project_state(with_applied_migrations=True))
        for migration, backwards in plan:
            if migration in befores:
                rolling = Rolling(befores[migration])
            faked = fake or (
                fake_initial and not backwards and executor.detect_soft_applied(rolling.state, migration)[0]
            )
            moves = rolling.moves(migration.operations, migration.app_label)
            statements, models = list[str](), set[str]()
            if not faked:
                statements, models = _collect(connection, migration, backwards, moves, asked, changed)
            drafts.append((migration, backwards, faked, statements, models))
        names = {name for *_, sqls, models in drafts for name in models.union(*map(mentions, sqls))}
        there = catalog.tables(connection, names) if connection.vendor == "postgresql" else {}
    return [
        PlannedStep(
            app=migration.app_label,
            name=migration.name,
            direction="down" if backwards else "up",
            stage=stages[key_of(migration)],
            atomic=migration.atomic,
            faked=faked,
            statements=statements,
            tables=_touched(statements, models, there),
        )
        for migration, backwards, faked, statements, models in drafts
    ]


def mentions(statement: str) -> set[str]:
    """Return the names in the statement that may be of a table, an index or a foreign key, as they are written."""
    return {
        name
        for one in _run_by(statement)
        for found in MENTION.finditer(one.outline)
        for mentioned in found["names"].split(" , ")
        for name in (one.written(mentioned), one.written(mentioned.partition(".")[0]))
        if "&" not in name  # no function of PostgreSQL reads U&"…"
    }


def _run_by(sql: str, *, as_code: bool = False) -> Iterator[Statement]:
    """Yield the statements that the string runs, also those in the code of a DO and in the texts there.

    Args:
        as_code: whether the string is such code itself.
    """
    for one in split(sql):
        yield one
        if as_code or one.verb == "DO":
            for text in one.texts:
                yield from _run_by(text, as_code=True)


@contextmanager
def only_looking(connection: BaseDatabaseWrapper) -> Iterator[set[str]]:
    """Let nobody write in what happens inside; yield the names that the database is asked about, as they come.

    The transactions are read-only, not the session, which behind a pooling proxy others would inherit. None lasts
    longer than its question, and none waits for a lock for longer than a migration would.
    """
    asked: set[str] = set()

    def look(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        asked.update(value for value in params or () if isinstance(value, str))
        with connection.connection.transaction():
            return execute(sql, params, many, context)

    if connection.vendor != "postgresql":
        yield asked
        return
    connection.ensure_connection()
    session, free = connection.connection, not connection.in_atomic_block
    before = session.read_only
    if free:
        session.read_only = True
    try:
        with (
            locks.session_settings(connection, lock_timeout=locks.milliseconds(conf.LOCK_TIMEOUT)),
            connection.execute_wrapper(look),
        ):
            yield asked
    finally:
        if free:
            session.read_only = before


def states_before(executor: Executor, plan: Plan) -> dict[Migration, ProjectState]:
    """Return the state before each of these applied migrations, as Django finds it to take them back."""
    graph, applied = executor.loader.graph, executor.loader.applied_migrations
    wanted, states = {migration for migration, _ in plan}, {}
    state = executor._create_project_state()
    for migration, _ in executor.migration_plan(graph.leaf_nodes(), clean_start=True):
        if migration in wanted:
            states[migration] = state
            state = migration.mutate_state(state, preserve=True)
        elif key_of(migration) in applied:
            migration.mutate_state(state, preserve=False)
    return states


def _collect(
    connection: BaseDatabaseWrapper,
    migration: Migration,
    backwards: bool,
    moves: list[Move],
    asked: set[str],
    changed: set[str],
) -> tuple[list[str], set[str]]:
    """Return the migration's statements, and the tables of the models that it uses otherwise.

    Args:
        asked: the names that the database is being asked about.
        changed: the plain names in earlier statements of the plan; those of this migration are added.
    """
    app, models = migration.app_label, set[str]()
    with connection.schema_editor(collect_sql=True, atomic=migration.atomic) as editor:
        said = editor.collected_sql
        for operation, before, after in reversed(moves) if backwards else moves:
            asked.clear()
            known = len(said)
            if backwards and not operation.reversible:
                said.append(f"-- CANNOT BE TAKEN BACK: {operation.describe()} has no reverse.")
            elif isinstance(operation, RunPython):
                code: Any = operation.reverse_code if backwards else operation.code
                if code is not RunPython.noop and router.allow_migrate(connection.alias, app, **operation.hints):
                    code = getattr(code, "func", code)  # of a functools.partial
                    said.append(f"-- Python: {code.__module__}.{getattr(code, '__qualname__', code)}")
                    models |= _models_got(code, before)
            elif not operation.reduces_to_sql:
                said.append(f"-- Not SQL: {operation.describe()}")
            else:
                try:
                    if backwards:
                        operation.database_backwards(app, editor, after, before)
                    else:
                        operation.database_forwards(app, editor, before, after)
                except Exception as error:  # noqa: BLE001  (an operation may raise anything, and the plan goes on)
                    said.append(f"-- Cannot be told before the steps above have run: {in_full(error)}")
                    models |= _model_of(operation, app, before)
            if looked_up := asked & changed:
                said.append(
                    f"-- Perhaps more: Django looks up names of indexes and constraints on {', '.join(looked_up)}, "
                    "which a step above makes or changes."
                )
                models |= _model_of(operation, app, before)
            changed.update(name.strip('"') for sql in said[known:] for name in mentions(sql))
    return [re.sub(r"\s+;$", ";", sql.strip()) for sql in said], models


def _models_got(code: Callable[..., Any], state: ProjectState) -> set[str]:
    """Return the tables of the models that the function's source asks for by get_model."""
    with suppress(OSError, TypeError):
        return _tables(state, GET_MODEL.findall(inspect.getsource(code)))
    return set()


def _model_of(operation: Operation, app: str, state: ProjectState) -> set[str]:
    return _tables(state, [(app, str(getattr(operation, "model_name", getattr(operation, "name", ""))))])


def _tables(state: ProjectState, names: Iterable[tuple[str, str]]) -> set[str]:
    found = [state.models[app, name.lower()] for app, name in names if (app, name.lower()) in state.models]
    tables = [
        model.options.get("db_table") or truncate_name(f"{model.app_label}_{model.name_lower}", 63) for model in found
    ]
    return {'"{}"'.format(table.replace('"', '""')) for table in tables}


def _touched(statements: list[str], models: set[str], there: dict[str, Table]) -> list[Table]:
    """Return the tables that the statements or models mean, the largest first."""
    tables = {there[name] for name in models if name in there}
    for sql in statements:
        named = {there[name] for name in mentions(sql) if name in there}
        tables |= named
        if any("DROP TABLE" in one.outline for one in _run_by(sql)):  # which locks what its foreign keys point to
            tables |= {there[parent] for table in named for parent in table.parents}
    return sorted(tables, key=lambda table: (-table.bytes, table.name))
