"""How is a plan carried out so that nobody waits for it longer than the operator allows?

The executor is Django's, and does around each migration what the other rooms know: it takes locks under the budget,
tries again what did not get them, lets the watchdog look, and writes the ledger on a connection of its own, which a
migration's rollback does not reach. Test databases get none of this.
"""

import getpass
import hashlib
import inspect
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import TEST_DATABASE_PREFIX
from django.db.migrations import Migration
from django.db.migrations import executor as django_executor
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime import locks, models
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import BlockedTooLong, DefinitionDiffers, summary
from gotong_royong.zero_downtime.models import Run, Status, Step
from gotong_royong.zero_downtime.schema import schema_editor_class
from gotong_royong.zero_downtime.stages import Plan, Stage, before_deploy
from gotong_royong.zero_downtime.watchdog import Watchdog

APP = "zero_downtime"

Report = Callable[[str], object]


def is_guarded(connection: BaseDatabaseWrapper) -> bool:
    """Whether runs on this database are guarded and recorded: on PostgreSQL, but not on a test's database."""
    name = str(connection.settings_dict["NAME"])
    is_test = name.startswith(TEST_DATABASE_PREFIX) or name == connection.settings_dict["TEST"]["NAME"]
    return connection.vendor == "postgresql" and not is_test


@contextmanager
def second_session(connection: BaseDatabaseWrapper) -> Iterator[str]:
    """Open another session on the same database, under an alias of its own: for the runner's lock and the ledger."""
    alias = f"{connection.alias}_ledger"
    connections[alias] = connection.copy(alias)
    with connections[alias].cursor() as cursor:
        # The next commit of the migrating session takes to the disk what the ledger wrote before it.
        cursor.execute("SET synchronous_commit = off")
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]


@contextmanager
def only_runner(connection: BaseDatabaseWrapper, report: Report) -> Iterator[str]:
    """Wait until no other run is on this database and keep others out; yield the second session's alias.

    Raises:
        TransactionPooling: where such a lock means nothing.
    """
    with second_session(connection) as alias:
        other = connections[alias]
        connection.ensure_connection()
        locks.refuse_transaction_pooling(other, connection)
        said = ""

        def say_whom() -> None:
            nonlocal said
            run = Run.objects.using(alias).filter(status=Status.RUNNING).last() if _has_ledger(other) else None
            whom = run.described if run else "another migrate, which is about to start"
            if whom != said:
                report(f"Waiting for {whom}.")
                said = whom

        with locks.runner(other, say_whom):
            yield alias


def _has_ledger(connection: BaseDatabaseWrapper) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [Step._meta.db_table])
        return bool(cursor.fetchone()[0])


def checksum(migration: Migration) -> str:
    """Return the SHA-256 of the file that the migration stands in; nothing if there is none."""
    try:
        with open(inspect.getfile(type(migration)), "rb") as file:  # noqa: PTH123  (a path object per file costs more)
            return hashlib.sha256(file.read()).hexdigest()
    except (OSError, TypeError):
        return ""


class Executor(django_executor.MigrationExecutor):
    """Django's, with a lock budget, a watchdog and a ledger.

    Args:
        ledger: the alias of the second session; without one nothing is guarded or recorded.
        command: what the ledger calls this run.
        stage: which part of a plan to carry out; None for all of it.
        report: is told what an operator wants to know while waiting.
    """

    watchdog: Watchdog

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        progress_callback: Any = None,
        *,
        ledger: str = "",
        command: str = "migrate",
        stage: Stage | None = None,
        report: Report = print,
    ) -> None:
        super().__init__(connection, progress_callback)
        self.ledger, self.command, self.stage, self.report = ledger, command, stage, report
        self.held_back: list[str] = []
        self.run: Run | None = None
        self._in_statement = False
        self._forgotten: set[Migration] = set()

    def migration_plan(self, targets: Any, clean_start: bool = False) -> Plan:
        plan: Plan = super().migration_plan(targets, clean_start)
        if self.stage == Stage.PRE_DEPLOY and not clean_start:
            plan, self.held_back = before_deploy(plan, self.loader.graph)
        return plan

    def _create_project_state(self, with_applied_migrations: bool = False) -> ProjectState:
        """Build the state that all migrations lead to once, not twice as Django does when there is nothing to apply."""
        if not with_applied_migrations or not set(self.loader.graph.nodes) <= set(self.loader.applied_migrations):
            django: Any = super()
            return django._create_project_state(with_applied_migrations)  # type: ignore[no-any-return]
        find, final = self.loader.project_state, self.loader.project_state()
        self.loader.project_state = lambda *nodes, **at: find(*nodes, **at) if nodes else final.clone()  # type: ignore[method-assign]
        return final.clone()

    def migrate(
        self,
        targets: Any,
        plan: Any = None,
        state: Any = None,
        fake: bool = False,
        fake_initial: bool = False,
    ) -> Any:
        if plan is None:
            plan = self.migration_plan(targets)
        unmakes_ledger = any(backwards and migration.app_label == APP for migration, backwards in plan)
        if not plan or unmakes_ledger or not self.ledger:
            return super().migrate(targets, plan, state, fake, fake_initial)
        with self._twice_is_once():
            made = self._make_ledger()
            if state is not None:
                for migration in made:
                    migration.mutate_state(state, preserve=False)
            plan = [step for step in plan if step[0] not in made]
            with self._recorded(), self._guarded():
                return super().migrate(targets, plan, state, fake, fake_initial)

    @contextmanager
    def _twice_is_once(self) -> Iterator[None]:
        """Let all schema changes of this connection go through our schema editor."""
        editor = self.connection.SchemaEditorClass
        self.connection.SchemaEditorClass = schema_editor_class(editor)
        try:
            yield
        finally:
            self.connection.SchemaEditorClass = editor

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Open a run in the ledger, and say in it how the run ended."""
        for dead in models.bury_the_dead(self.ledger):
            self.report(f"Found {dead.described}, whose process died. What it left half done is finished now.")
        self.run = Run.objects.using(self.ledger).create(
            command=self.command,
            who=f"{getpass.getuser()}@{socket.gethostname()}",
            process=os.getpid(),
            revision=_revision(),
        )
        try:
            yield
        except KeyboardInterrupt:
            models.finish(self.run, Status.INTERRUPTED, error="Stopped by Ctrl-C or SIGTERM.")
            raise
        except BaseException as error:
            models.finish(self.run, Status.FAILED, error=summary(error))
            raise
        with connections[self.ledger].cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
        models.finish(self.run, Status.SUCCEEDED)
        if conf.KEEP_RUNS is not None:
            models.prune(self.ledger, conf.KEEP_RUNS)

    def _make_ledger(self) -> list[Migration]:
        """Apply the ledger's own migrations, which no ledger can record; return those."""
        plan = super().migration_plan(self.loader.graph.leaf_nodes(APP))
        if plan:
            executor = django_executor.MigrationExecutor(self.connection)
            executor.migrate([], plan=plan)
            self.loader.applied_migrations |= {(APP, migration.name): migration for migration, _ in plan}
        return [migration for migration, _ in plan]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Put the lock budget and the watchdog around everything that the connection does."""
        with ExitStack() as stack:
            lock_timeout = locks.milliseconds(conf.LOCK_TIMEOUT)
            stack.enter_context(locks.session_settings(self.connection, lock_timeout=lock_timeout))
            self.watchdog = stack.enter_context(
                Watchdog(self.connection, budget=conf.BLOCK_BUDGET, queue_budget=conf.LOCK_TIMEOUT)
            )
            stack.enter_context(self.connection.execute_wrapper(self._statement))
            yield

    def apply_migration(
        self, state: ProjectState, migration: Migration, fake: bool = False, fake_initial: bool = False
    ) -> ProjectState:
        if (run := self.run) is None:
            return super().apply_migration(state, migration, fake, fake_initial)
        self._progress("apply_start", migration, fake)
        if fake_initial and not fake:
            fake, state = self.detect_soft_applied(state, migration)
        before = ProjectState({key: model.clone() for key, model in state.models.items()}, state.real_apps)

        def apply(attempt: int) -> ProjectState:
            after = state if attempt == 1 else before.clone()
            try:
                with self._editor(migration, fake or migration in self._forgotten) as editor:
                    if editor:
                        after = migration.apply(after, editor)
                        _run_deferred(editor)
                    self._record(migration)
            except DefinitionDiffers:
                self._forgotten |= self._applied_before(migration)
                if migration not in self._forgotten:
                    raise
                after = before.clone()
                self._record(migration)
            if migration in self._forgotten:
                migration.mutate_state(after, preserve=False)
            return after

        state = self._step(run, migration, Step.Direction.UP, fake, apply)
        self._progress("apply_success", migration, fake)
        return state

    def unapply_migration(self, state: ProjectState, migration: Migration, fake: bool = False) -> ProjectState:
        if (run := self.run) is None:
            return super().unapply_migration(state, migration, fake)
        self._progress("unapply_start", migration, fake)

        def unapply(attempt: int) -> ProjectState:
            before = state
            with self._editor(migration, fake) as editor:
                if editor:
                    before = migration.unapply(state, editor)
                    _run_deferred(editor)
                for app, name in [*migration.replaces, (migration.app_label, migration.name)]:
                    self.recorder.record_unapplied(app, name)
            return before

        state = self._step(run, migration, Step.Direction.DOWN, fake, unapply)
        self._progress("unapply_success", migration, fake)
        return state

    def _record(self, migration: Migration) -> None:
        django: Any = self
        django.record_migration(migration)

    def _applied_before(self, migration: Migration) -> set[Migration]:
        """Return this migration and those after it in its app that the tables show to be applied, if they do.

        What a migration makes may be there already and differ because later ones changed it, when only the rows of
        django_migrations are gone. So the tables are compared with the models after each later migration.
        """
        app = migration.app_label
        after: list[Migration] = []
        for node in self.loader.graph.forwards_plan(self.loader.graph.leaf_nodes(app)[0]):
            if node[0] != app or (not after and node != (app, migration.name)):
                continue
            after.append(self.loader.graph.nodes[node])
            models_then = [
                model
                for model in self.loader.project_state(node).apps.get_app_config(app).get_models()
                if not model._meta.proxy and model._meta.managed and not model._meta.swapped
            ]
            if models_then and all(map(self._is_there, models_then)):
                self.report(
                    f"  {after[0]} up to {after[-1].name} were applied before, though django_migrations had forgotten: "
                    "recorded, not run."
                )
                return set(after)
        return set()

    def _is_there(self, model: Any) -> bool:
        """Whether the model's table is there, just as the model says."""
        with self.connection.cursor() as cursor:
            if model._meta.db_table not in self.connection.introspection.table_names(cursor):
                return False
        try:
            with self.connection.schema_editor() as editor:
                editor.create_model(model)  # which is skipped: the table is there
                editor.deferred_sql.clear()
        except DefinitionDiffers:
            return False
        return True

    def _editor(self, migration: Migration, fake: bool) -> Any:
        return nullcontext() if fake else self.connection.schema_editor(atomic=migration.atomic)

    def _progress(self, *what: Any) -> None:
        if self.progress_callback:
            self.progress_callback(*what)

    def _step(
        self,
        run: Run,
        migration: Migration,
        direction: Step.Direction,
        fake: bool,
        action: Callable[[int], ProjectState],
    ) -> ProjectState:
        """Carry out one migration, again and again until it has its locks, and write into the ledger how it went."""
        step = Step.objects.using(self.ledger).create(
            run=run,
            app=migration.app_label,
            name=migration.name,
            direction=direction,
            faked=fake,
            checksum=checksum(migration),
        )
        blocked, tries = self.watchdog.new_step(), 0

        def measured() -> dict[str, Any]:
            return {
                "tries": tries,
                "lock_wait": blocked.lock_wait,
                "longest_blocked": blocked.longest,
                "total_blocked": blocked.total,
                "blocked_sessions": blocked.sessions,
            }

        def one_try(attempt: int) -> ProjectState:
            nonlocal tries
            tries = attempt
            return action(attempt)

        try:
            state: ProjectState = self._retrying(one_try)
        except BaseException as error:
            if isinstance(error, Exception) and self.watchdog.verdict:
                error = BlockedTooLong(f"{migration} was stopped and undone. {self.watchdog.verdict}")
            status = Status.FAILED if isinstance(error, Exception) else Status.INTERRUPTED
            with suppress(Error):
                models.finish(step, status, error=summary(error), **measured())
            raise error from None if isinstance(error, BlockedTooLong) else error.__cause__
        models.finish(step, Status.SUCCEEDED, **measured())
        return state

    def _statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Run one statement, outside of a transaction again and again until it has its lock.

        In a transaction it is run once, because that is tried again as a whole. So is a concurrent index build: what a
        failed one left behind must go first, and the schema editor sees to that.
        """
        if self._in_statement:
            return execute(sql, params, many, context)
        if self.watchdog.verdict:
            raise BlockedTooLong(self.watchdog.verdict)
        text = str(sql)
        patient = locks.is_patient(text)

        def once(attempt: int = 1) -> Any:
            exempt = {"lock_timeout": "0", "statement_timeout": "0"} if patient else {}
            with locks.session_settings(self.connection, **exempt):
                return execute(sql, params, many, context)

        self._in_statement, self.watchdog.statement = True, text
        try:
            return once() if patient or self.connection.in_atomic_block else self._retrying(once)
        finally:
            self._in_statement, self.watchdog.statement = False, ""

    def _retrying(self, action: Callable[[int], Any]) -> Any:
        return locks.retrying(action, patience=conf.PATIENCE, retry=self._is_worth_another_try, report=self._say_retry)

    def _is_worth_another_try(self, error: BaseException) -> bool:
        state = locks.sqlstate(error)
        return state in {locks.LOCK_NOT_AVAILABLE, locks.DEADLOCK} or (
            state == locks.QUERY_CANCELED and self.watchdog.gave_way and not self.watchdog.verdict
        )

    def _say_retry(self, attempt: int, pause: float, error: BaseException) -> None:
        if attempt in {3, 5} or attempt % 10 == 0:
            whom = self.watchdog.whom_we_wait_for() or summary(error)
            self.report(f"Try {attempt} got no lock: {whom}. Next in {pause:.1f} s.")
        self.watchdog.new_try()


def _run_deferred(editor: Any) -> None:
    """Do what the editor would do at its end, so that the record of the migration stands in the same transaction."""
    for sql in editor.deferred_sql:
        editor.execute(sql, None)
    editor.deferred_sql.clear()


def _revision() -> str:
    """Return the git revision of the code, if it stands in a work tree and git is there."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
