"""What would a plan do to this database? For each step: its statements, and the existing tables that they touch.

It writes nothing and keeps no lock: Django's schema editor collects the statements, and questions to the database run
in read-only transactions. Python is named, not run.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import RunPython
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.transaction import atomic, set_rollback

from ..conf import conf
from ..exceptions import ZeroDowntimeError, in_full
from ..operations import RunBackfill
from ..postgres import catalog, locks
from ..postgres.catalog import Table
from ..postgres.effects import dependents
from ..postgres.journal import Past
from ..postgres.statements import NAME, Statement, drops, quoted, split
from ..stages import Plan, Stage, key_of, table_of
from . import history, recall, undo
from .executor import Executor
from .states import Move, Rolling

# In an outline, the names of a table, an index or a foreign key follow one of these words, perhaps as a list.
MENTION = re.compile(
    r"\b(?:TABLE|INDEX|VIEW|CONSTRAINT|REFERENCES|ON|FROM|JOIN|INTO|UPDATE|OF|PARTITION|INHERIT|LIKE"
    r"|LOCK|TRUNCATE|COPY|CLUSTER|ANALYZE|VACUUM|FULL) "
    r"(?:(?:TABLE|INDEX|VIEW|CONSTRAINT|COLUMN|IF|NOT|EXISTS|ONLY|CONCURRENTLY) )*"
    rf"(?P<names>{NAME}(?: , {NAME})*)"
)
GET_MODEL = re.compile(r"""\bget_model\(\s*["'](\w+)(?:["']\s*,\s*["']|\.)(\w+)["']""")


@dataclass(frozen=True, eq=False)
class PlannedStep:
    """One migration of a plan. ``statements`` are SQL, or SQL comments for what is not SQL.

    An ``atomic`` step is one transaction; a ``faked`` step is only recorded. ``done`` are the numbers of the operations
    that an earlier, failed run carried out and that are not run again. If they were ``edited`` in the file since, the
    migration is refused.
    """

    app: str
    name: str
    direction: str
    stage: Stage
    atomic: bool
    faked: bool
    done: list[int]
    edited: bool
    statements: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def __str__(self) -> str:
        remarks = [self.direction, self.stage.replace("_", "-")]
        remarks += ["not in one transaction"] * (not self.atomic) + ["only recorded"] * self.faked
        if self.edited:
            remarks.append("half done, and edited since: refused until the file says again what was done")
        elif self.done:
            remarks.append(f"half done: goes on after operation {max(self.done)}")
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
        fake: whether every step is only recorded.
        fake_initial: whether initial migrations whose tables exist are only recorded.

    Raises:
        ImpossibleStage: if a migration names a stage that does not exist.
    """
    connection, stages = executor.connection, executor.stages_of(plan)
    steps: dict[PlannedStep, set[str]] = {}
    with only_looking(connection) as asked:
        look, failed = Collector(connection, asked), history.failed(connection.alias)
        memory = history.remembered(connection.alias, executor.loader)
        lost = {key_of(one) for one in recall.lost(connection, executor.loader, memory)}
        befores = states_before(executor, plan) if any(backwards for _, backwards in plan) else {}
        rolling = Rolling(executor._create_project_state(with_applied_migrations=True))
        for migration, backwards in plan:
            if migration in befores:
                rolling = Rolling(befores[migration])
            key = key_of(migration)
            past = executor.past(*key) if key in failed and not backwards else Past()
            is_soft = fake_initial and not backwards and executor.detect_soft_applied(rolling.state, migration)[0]
            moves = [rolling.moves([operation], migration.app_label) for operation in migration.operations]
            step = PlannedStep(
                app=migration.app_label,
                name=migration.name,
                direction="down" if backwards else "up",
                stage=stages[key],
                atomic=migration.atomic,
                faked=fake or is_soft or key in lost,
                edited=bool(undo.first_edited(migration, past)),
                done=[number for number, _ in enumerate(moves, 1) if number in past and past[number].ended],
            )
            if key in lost:
                step.statements.append("-- django_migrations has lost this; the ledger knows that it is applied")
            rest = [move for number, some in enumerate(moves, 1) if number not in step.done for move in some]
            steps[step] = set() if step.faked else look.collect(migration, step, rest)
        names = {name for step, models in steps.items() for name in models.union(*map(mentions, step.statements))}
        there = catalog.tables(connection, names) if connection.vendor == "postgresql" else {}
    for step, models in steps.items():
        step.tables.extend(_touched(step.statements, models, there))
    return list(steps)


def mentions(statement: str) -> set[str]:
    """Return the names in the statement that may be of a table, an index or a foreign key, as written."""
    return {
        name
        for one in _run_by(statement)
        for found in MENTION.finditer(one.outline)
        for mentioned in found["names"].split(" , ")
        for name in (one.written(mentioned), one.written(mentioned.partition(".")[0]))
        if "&" not in name  # no function of PostgreSQL reads U&"…"
    }


def _run_by(sql: str, *, as_code: bool = False) -> Iterator[Statement]:
    """Yield the statements of the string, also those in the code of a DO and in the strings there.

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
    """Make every question of the block a read-only transaction; yield the set of names that the questions ask about.

    The transactions are read-only, not the session, which others would inherit behind a pooling proxy. Each waits for a
    lock for LOCK_TIMEOUT at most.
    """
    asked: set[str] = set()

    def look(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        asked.update(value for value in params or () if isinstance(value, str))
        if Statement(sql).controls_transaction:  # Django's savepoints must outlive a transaction of ours
            return execute(sql, params, many, context)
        with connection.connection.transaction():
            return execute(sql, params, many, context)

    if connection.vendor != "postgresql":
        yield asked
        return
    with ExitStack() as stack:
        if locks.has_open_transaction(connection):  # the caller's: roll back to a savepoint in it
            stack.enter_context(atomic(using=connection.alias))
            stack.callback(set_rollback, True, using=connection.alias)
            connection.cursor().execute("SET LOCAL transaction_read_only = on")
        else:
            stack.enter_context(locks.session_of_its_own(connection))
            connection.ensure_connection()
            stack.callback(setattr, connection.connection, "read_only", connection.connection.read_only)
            connection.connection.read_only = True
        limit = locks.milliseconds(conf.LOCK_TIMEOUT)
        stack.enter_context(locks.session_settings(connection, lock_timeout=limit))
        stack.enter_context(connection.execute_wrapper(look))
        yield asked


def states_before(executor: Executor, plan: Plan) -> dict[Migration, ProjectState]:
    """Return the state before each of these applied migrations, as Django computes it to take them back."""
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


class Collector(MigrationLoader):
    """Django's ``collect_sql``, for the migrations of a plan one after the other.

    Args:
        asked: the set of names that ``only_looking`` yields.
    """

    def __init__(self, connection: BaseDatabaseWrapper, asked: set[str]) -> None:
        super().__init__(connection, load=False)
        self.asked, self.models = asked, set[str]()
        self.changed = set[str]()
        """The plain names in earlier statements of the plan."""

    def project_state(self, nodes: Any = None, at_end: bool = True) -> ProjectState:
        """Return no models: each operation has its own states."""
        return ProjectState()

    def collect(self, migration: Migration, step: PlannedStep, moves: list[Move]) -> set[str]:
        """Add the migration's SQL to the step; return the tables of the models that it uses without SQL."""
        self.models = set()
        told = {"atomic": migration.atomic, "operations": [Told(self, move) for move in moves]}
        alike = type("Migration", (Migration,), told)(migration.name, migration.app_label)
        said = self.collect_sql([(alike, step.direction == "down")])
        djangos = {"--", "-- ", "-- (no-op)"}  # Django writes these around each operation
        step.statements.extend(re.sub(r"\s+;$", ";", sql.strip()) for sql in said if sql not in djangos)
        return self.models


class Told(Operation):
    """Stands for an operation of a plan. It says in words what is not SQL, and errors."""

    def __init__(self, look: Collector, move: Move) -> None:
        self.look, (self.operation, self.before, self.after) = look, move
        self.atomic = self.operation.atomic  # type: ignore[misc]

    def describe(self) -> str:
        return ""

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Do nothing: the states before and after it are known."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        operation, code = self.operation, getattr(self.operation, "code", None)
        self._tell(app_label, schema_editor, code, operation.database_forwards, self.before, self.after)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        operation, code = self.operation, getattr(self.operation, "reverse_code", None)
        if operation.reversible:
            self._tell(app_label, schema_editor, code, operation.database_backwards, self.after, self.before)
        else:
            schema_editor.collected_sql.append(f"-- CANNOT BE TAKEN BACK: {operation.describe()} has no reverse.")

    def _tell(self, app: str, editor: Any, code: Any, act: Callable[..., None], *states: ProjectState) -> None:
        operation, said, look = self.operation, editor.collected_sql, self.look
        known, own_model = len(said), _model_of(operation, app, self.before)
        look.asked.clear()
        if isinstance(operation, RunPython) and not isinstance(operation, RunBackfill):
            if called := function_of(operation, code, app, editor.connection):
                said.append(f"-- Python: {named(called)}")
                look.models |= _models_got(called, self.before)
        elif not operation.reduces_to_sql:
            said.append(f"-- Not SQL: {operation.describe()}")
            if isinstance(operation, RunBackfill):
                with suppress(ZeroDowntimeError):  # it is not declared
                    look.models |= _tables(self.before, [operation.model])
        else:
            try:
                act(app, editor, *states)
            except Exception as error:  # noqa: BLE001  (an operation may raise anything, and the plan goes on)
                said.append(f"-- Not known before the steps above have run: {in_full(error)}")
                look.models |= own_model
        if looked_up := look.asked & look.changed:
            said.append(
                f"-- Perhaps more: Django looks up names of indexes and constraints on {', '.join(looked_up)}, "
                "which a step above makes or changes."
            )
            look.models |= own_model
        cascading = [one for sql in said[known:] if "CASCADE" in sql for one in split(sql) if drops(one.text)]
        for object in {object for one in cascading for object in one.objects}:
            for one in dependents(editor.connection, object):
                said.append(f"-- Also drops, unless a step above drops it: {one.description}.")
        look.changed.update(name.strip('"') for sql in said[known:] for name in mentions(sql))


def function_of(operation: RunPython, code: Any, app: str, connection: BaseDatabaseWrapper) -> Any:
    """Return the function ``code``, without its ``functools.partial``, if the operation calls it on this database."""
    if code is None or code is RunPython.noop or not router.allow_migrate(connection.alias, app, **operation.hints):
        return None
    return getattr(code, "func", code)


def named(function: Any) -> str:
    """Return ``module.function``."""
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def _models_got(code: Callable[..., Any], state: ProjectState) -> set[str]:
    """Return the tables of the models that the function's source gets by get_model."""
    with suppress(OSError, TypeError):
        return _tables(state, GET_MODEL.findall(inspect.getsource(code)))
    return set()


def _model_of(operation: Operation, app: str, state: ProjectState) -> set[str]:
    return _tables(state, [(app, str(getattr(operation, "model_name", getattr(operation, "name", ""))))])


def _tables(state: ProjectState, names: Iterable[tuple[str, str]]) -> set[str]:
    found = [state.models[app, name.lower()] for app, name in names if (app, name.lower()) in state.models]
    return {quoted(table_of(model.app_label, model)) for model in found}


def _touched(statements: list[str], models: set[str], there: dict[str, Table]) -> list[Table]:
    """Return the tables of the statements and models, the largest first."""
    tables = {there[name] for name in models if name in there}
    for sql in statements:
        named = {there[name] for name in mentions(sql) if name in there}
        tables |= named
        if any("DROP TABLE" in one.outline for one in _run_by(sql)):  # it also locks the targets of its foreign keys
            tables |= {there[parent] for table in named for parent in table.parents}
    return sorted(tables, key=lambda table: (-table.bytes, table.name))
