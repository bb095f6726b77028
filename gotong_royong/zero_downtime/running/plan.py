"""What would a plan do to this database? For each step its statements, and the tables it touches that are there.

Nothing is written and no lock kept: Django's schema editor collects the statements, and what it or an operation asks
the database meanwhile is asked in transactions that are read-only. Python is named, not run.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import truncate_name
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
from ..postgres.statements import NAME, Statement, drops, split
from ..stages import Plan, Stage, key_of
from . import history, recall, undo
from .executor import Executor
from .states import Move, Rolling

# Where an outline names a table, an index or a foreign key: after one of these words, or in a list there.
MENTION = re.compile(
    r"\b(?:TABLE|INDEX|VIEW|CONSTRAINT|REFERENCES|ON|FROM|JOIN|INTO|UPDATE|OF|PARTITION|INHERIT|LIKE"
    r"|LOCK|TRUNCATE|COPY|CLUSTER|ANALYZE|VACUUM|FULL) "
    r"(?:(?:TABLE|INDEX|VIEW|CONSTRAINT|COLUMN|IF|NOT|EXISTS|ONLY|CONCURRENTLY) )*"
    rf"(?P<names>{NAME}(?: , {NAME})*)"
)
GET_MODEL = re.compile(r"""\bget_model\(\s*["'](\w+)(?:["']\s*,\s*["']|\.)(\w+)["']""")


@dataclass(frozen=True, eq=False)
class PlannedStep:
    """One migration of a plan. ``statements`` are SQL, or SQL comments that say in words what is not SQL.

    Those of a step that is ``atomic`` are one transaction; a step that is ``faked`` is only recorded. The operations
    with the numbers in ``done`` were carried out by a run that failed later on, and are not carried out again; if they
    were ``edited`` in the file since, the migration is refused.
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
            remarks.append("half done, and edited since: refused until what was done is back in its file")
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
        fake: as if every step were only recorded.
        fake_initial: as if those initial ones were whose tables are there already.

    Raises:
        ImpossibleStage: if a migration says a stage that is none.
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
                step.statements.append("-- django_migrations has lost this, which the ledger knows to be applied")
            rest = [move for number, some in enumerate(moves, 1) if number not in step.done for move in some]
            steps[step] = set() if step.faked else look.collect(migration, step, rest)
        names = {name for step, models in steps.items() for name in models.union(*map(mentions, step.statements))}
        there = catalog.tables(connection, names) if connection.vendor == "postgresql" else {}
    for step, models in steps.items():
        step.tables.extend(_touched(step.statements, models, there))
    return list(steps)


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
        if Statement(sql).controls_transaction:  # Django's savepoints, which must not end with a transaction of ours
            return execute(sql, params, many, context)
        with connection.connection.transaction():
            return execute(sql, params, many, context)

    if connection.vendor != "postgresql":
        yield asked
        return
    with ExitStack() as stack:
        if locks.is_in_transaction(connection):  # of the caller, to whom nothing may be left
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


class Collector(MigrationLoader):
    """Django's loader, where it collects what the migrations of a plan say, one after the other.

    Args:
        asked: the names that the database is being asked about.
    """

    def __init__(self, connection: BaseDatabaseWrapper, asked: set[str]) -> None:
        super().__init__(connection, load=False)
        self.asked, self.models = asked, set[str]()
        self.changed = set[str]()
        """The plain names in earlier statements of the plan."""

    def project_state(self, nodes: Any = None, at_end: bool = True) -> ProjectState:
        """Return none of the models: each operation has those that it needs."""
        return ProjectState()

    def collect(self, migration: Migration, step: PlannedStep, moves: list[Move]) -> set[str]:
        """Write down what the migration says; return the tables of the models that it uses otherwise."""
        self.models = set()
        told = {"atomic": migration.atomic, "operations": [Told(self, move) for move in moves]}
        alike = type("Migration", (Migration,), told)(migration.name, migration.app_label)
        said = self.collect_sql([(alike, step.direction == "down")])
        djangos = {"--", "-- ", "-- (no-op)"}  # which it writes around each operation
        step.statements.extend(re.sub(r"\s+;$", ";", sql.strip()) for sql in said if sql not in djangos)
        return self.models


class Told(Operation):
    """Stands for an operation of a plan. What is no SQL it says in words; what goes wrong, too."""

    def __init__(self, look: Collector, move: Move) -> None:
        self.look, (self.operation, self.before, self.after) = look, move
        self.atomic = self.operation.atomic  # type: ignore[misc]

    def describe(self) -> str:
        return ""

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """The models before and after it are known."""

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
            if code is not RunPython.noop and router.allow_migrate(editor.connection.alias, app, **operation.hints):
                code = getattr(code, "func", code)  # of a functools.partial
                said.append(f"-- Python: {code.__module__}.{getattr(code, '__qualname__', code)}")
                look.models |= _models_got(code, self.before)
        elif not operation.reduces_to_sql:
            said.append(f"-- Not SQL: {operation.describe()}")
            if isinstance(operation, RunBackfill):
                with suppress(ZeroDowntimeError):  # it is not declared
                    look.models |= _tables(self.before, [operation.model])
        else:
            try:
                act(app, editor, *states)
            except Exception as error:  # noqa: BLE001  (an operation may raise anything, and the plan goes on)
                said.append(f"-- Cannot be told before the steps above have run: {in_full(error)}")
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
                said.append(f"-- Takes along, unless a step above drops it: {one.description}.")
        look.changed.update(name.strip('"') for sql in said[known:] for name in mentions(sql))


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
