"""How is a plan carried out so that nobody waits for it longer than the operator allows?

The executor is Django's, and does around each migration what the other rooms know: it tries again what got no lock
under the guard, writes the ledger, and undoes a batch that failed. Test databases get none of this.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from django.db import Error, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations.base import Operation
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState

from gotong_royong.zero_downtime import history, ledger, locks, models, rollback
from gotong_royong.zero_downtime.exceptions import (
    NoLedger,
    NotUndoable,
    RolledBack,
    StepFailed,
    ZeroDowntimeError,
    counted,
    in_full,
    summary,
)
from gotong_royong.zero_downtime.guard import Guard, guarded
from gotong_royong.zero_downtime.ledger import APP
from gotong_royong.zero_downtime.loader import Loader, file_of
from gotong_royong.zero_downtime.models import Run, Status, Step
from gotong_royong.zero_downtime.schema import schema_editor_class, twice_is_once
from gotong_royong.zero_downtime.stages import Plan, Stage, before_deploy, key_of, stage_of
from gotong_royong.zero_downtime.states import Rolling
from gotong_royong.zero_downtime.watchdog import Report

# What PostgreSQL says of a statement that was executed before: a table, column or object is there, or is gone.
DONE_ALREADY = {"42P07", "42701", "42710", *rollback.GONE}

STAYS = "It is not atomic, so what it did before that stays; migrate again goes on from there."


class Begun(list[Operation]):
    """A migration's operations; remembers how many of them were begun."""

    begun = 0

    def __iter__(self) -> Iterator[Operation]:
        for self.begun, operation in enumerate(super().__iter__(), 1):
            yield operation


class Executor(MigrationExecutor):
    """Django's, with a lock budget, a watchdog and a ledger.

    Args:
        alias: of the second session, which writes the ledger; without one nothing is guarded or recorded.
        command: what the ledger calls this run.
        stage: which part of a plan to carry out; None for all of it.
        auto_rollback: whether to undo what the run applied when a step fails.
        report: is told what happens, as it happens.
        backup_folder: where to back up the database before the first step, if anywhere.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        progress_callback: Any = None,
        *,
        alias: str = "",
        command: str = "migrate",
        stage: Stage | None = None,
        auto_rollback: bool = False,
        report: Report = lambda event, **facts: None,
        backup_folder: str | None = None,
    ) -> None:
        self.connection, self.progress_callback = connection, progress_callback
        self.loader: Loader = Loader(connection)
        self.recorder = MigrationRecorder(connection)
        self.alias, self.command, self.stage, self.auto_rollback = alias, command, stage, auto_rollback
        self.report, self.backup_folder = report, backup_folder
        self.held_back: list[str] = []
        self.run: Run | None = None
        self._at_work: tuple[ledger.Steps, Guard] | None = None
        self._applied: list[Migration] = []
        self._number = self._of = 0
        self._rolling: Rolling | None = None

    def recall(self) -> None:
        """Say which applied files were edited since, and record what django_migrations has lost and the ledger knows.

        Writes rows of django_migrations, so hold the runner's lock.
        """
        memory = history.remembered(self.alias)
        if edited := history.edited(self.loader, memory):
            self.report("note", text=history.warning(edited))
        lost = history.lost(self.connection, self.loader, memory)
        for migration in lost:
            self.record_migration(migration)
            if migration.replaces:
                self.recorder.record_applied(*key_of(migration))
            self.report(
                "note",
                text=f"django_migrations has lost {migration}, which the ledger knows to be applied: "
                "recorded again, not run.",
            )
        if lost:
            self.loader.build_graph()

    def migration_plan(self, targets: Any, clean_start: bool = False) -> Plan:
        plan: Plan = super().migration_plan(targets, clean_start)
        if self.stage == Stage.PRE_DEPLOY and not clean_start:
            plan, self.held_back = before_deploy(plan, self.loader.graph)
        return plan

    def _create_project_state(self, with_applied_migrations: bool = False) -> ProjectState:
        django: Any = super()
        if not with_applied_migrations or not self.loader.graph.nodes.keys() <= self.loader.applied_migrations.keys():
            return django._create_project_state(with_applied_migrations)  # type: ignore[no-any-return]
        self.loader.final = self.loader.final or django._create_project_state(with_applied_migrations)
        return self.loader.project_state()

    def check_replacements(self) -> None:
        """Ask the database which migrations are applied only if one of them replaces others."""
        if self.loader.replacements:
            super().check_replacements()

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
        if not plan:
            ledger.bury_the_dead(self.alias, self.report)
            self.report("nothing_to_do")
        if not plan or unmakes_ledger or not self.alias:
            return super().migrate(targets, plan, state, fake, fake_initial)
        with ExitStack() as stack:
            made = self._make_ledger()
            if state is not None:
                for migration in made:
                    migration.mutate_state(state, preserve=False)
            plan = [step for step in plan if step[0] not in made]
            self._number, self._of = 0, len(plan)
            steps = stack.enter_context(ledger.recorded(self.alias, self.command, len(plan), self.report))
            self.run = steps.run
            if self.backup_folder:
                from gotong_royong.zero_downtime import backups

                self.run.backup = str(backups.take(self.connection, self.backup_folder, self.report))
                self.run.save(update_fields=["backup"])
            self._at_work = steps, stack.enter_context(guarded(self.connection, self.report))
            return super().migrate(targets, plan, state, fake, fake_initial)

    def _make_ledger(self) -> list[Migration]:
        """Apply the ledger's own migrations, which no ledger can record; return those.

        Raises:
            NoLedger: if this role may not make them.
        """
        leaves = self.loader.graph.leaf_nodes(APP)
        plan = super().migration_plan(leaves, clean_start=not ledger.exists(self.connection))
        try:
            if plan:
                with twice_is_once(self.connection):
                    super().migrate([], plan=plan)
        except (Error, MigrationSchemaMissing) as error:
            user = self.connection.settings_dict["USER"]
            raise NoLedger(
                f"The ledger's tables (zero_downtime_run, zero_downtime_step) cannot be made: {summary(error)}. "
                f"Nothing was changed. GRANT CREATE ON SCHEMA public TO {user or 'this role'}, or migrate as the "
                "owner of the database."
            ) from error
        self.loader.applied_migrations |= {(APP, migration.name): migration for migration, _ in plan}
        return [migration for migration, _ in plan]

    def _migrate_all_forwards(self, state: ProjectState, plan: Plan, full_plan: Plan, **fakes: bool) -> ProjectState:
        """Apply the plan as Django does, but render no models for it: each operation renders those that it needs."""
        rolling = ProjectState(state.clone().models, state.real_apps)
        wanted = {migration for migration, _ in plan}
        for migration, _ in full_plan:
            if migration in wanted:
                rolling = self.apply_migration(rolling, migration, **fakes)
        return rolling

    def apply_migration(
        self, state: ProjectState, migration: Migration, fake: bool = False, fake_initial: bool = False
    ) -> ProjectState:
        if (at_work := self._at_work) is None:
            return super().apply_migration(state, migration, fake, fake_initial)
        if fake_initial and not fake:
            fake, state = self.detect_soft_applied(state, migration)
        used = False

        def apply(careful: bool) -> ProjectState:
            nonlocal used
            after = self._create_project_state(with_applied_migrations=True) if used else state
            used = True
            with self._editor(migration, fake, careful) as editor:
                if editor:
                    after = self._apply(after, migration, editor)
                    _run_deferred(editor)
                self.record_migration(migration)
            return after

        state = self._step(*at_work, migration, Step.Direction.UP, apply, faked=fake)
        self._applied.append(migration)
        self.loader.applied_migrations[key_of(migration)] = migration
        return state

    def _apply(self, state: ProjectState, migration: Migration, editor: Any) -> ProjectState:
        if type(migration).apply is not Migration.apply:
            return migration.apply(state.clone(), editor)
        self._rolling = self._rolling if self._rolling and self._rolling.state is state else Rolling(state)
        self._rolling.apply(migration, editor)
        return state

    def unapply_migration(self, state: ProjectState, migration: Migration, fake: bool = False) -> ProjectState:
        if (at_work := self._at_work) is None:
            return super().unapply_migration(state, migration, fake)

        def unapply(careful: bool) -> ProjectState:
            before = state
            with self._editor(migration, fake, careful) as editor:
                if editor:
                    before = migration.unapply(state, editor)
                    _run_deferred(editor)
                for app, name in [*migration.replaces, key_of(migration)]:
                    self.recorder.record_unapplied(app, name)
            return before

        state = self._step(*at_work, migration, Step.Direction.DOWN, unapply, faked=fake)
        self._applied = [other for other in self._applied if other != migration]
        return state

    def _editor(self, migration: Migration, fake: bool, careful: bool) -> Any:
        plain = self.connection.SchemaEditorClass
        editor = schema_editor_class(plain) if careful else plain
        return nullcontext() if fake else editor(self.connection, atomic=migration.atomic)

    def _step(
        self,
        steps: ledger.Steps,
        guard: Guard,
        migration: Migration,
        direction: Step.Direction,
        action: Callable[[bool], ProjectState],
        *,
        faked: bool,
    ) -> ProjectState:
        """Carry out one migration, again and again until it has its locks, and write into the ledger how it went."""
        self._number += 1
        who: dict[str, Any] = {"app": migration.app_label, "name": migration.name, "direction": direction.value}
        who |= {"number": self._number, "of": self._of}
        self.report("step_started", **who, stage=stage_of(migration).value, faked=faked)
        steps.begin(migration, direction, faked=faked)
        blocked, tries, started = guard.watchdog.new_step(), 0, time.monotonic()
        careful = not migration.atomic
        vars(migration)["operations"] = operations = Begun(migration.operations)

        def one_try(attempt: int) -> ProjectState:
            """Look before each statement whether it is done already only where that can be.

            A migration that is atomic leaves nothing half done, so it is PostgreSQL that says so, once in a while.
            """
            nonlocal tries, careful
            tries = attempt
            try:
                return action(careful)
            except (ProgrammingError, ValueError) as error:
                if careful or not (isinstance(error, ValueError) or locks.sqlstate(error) in DONE_ALREADY):
                    raise
                careful = True
                return action(careful)

        def end(status: Status, error: str = "") -> None:
            facts = {"tries": tries, "lock_wait": blocked.lock_wait, "longest_blocked": blocked.longest}
            facts |= {"total_blocked": blocked.total, "blocked_sessions": blocked.sessions}
            steps.end(status, error, facts)
            seconds = time.monotonic() - started
            self.report("step_finished", **who, status=status.value, seconds=seconds, error=error, **facts)

        def end_unless_committed(status: Status, error: str) -> None:
            """Ask django_migrations: what was interrupted or lost may have been only the answer to the commit."""
            is_done = models.is_done(self.alias, key_of(migration), direction)
            end(Status.SUCCEEDED if is_done else status, "" if is_done else error)

        try:
            state = guard.trying(one_try)
        except BaseException as error:
            if _is_interruption(error) or not isinstance(error, Exception):
                with suppress(Error):
                    end_unless_committed(Status.INTERRUPTED, "")
                if isinstance(error, Exception):
                    raise KeyboardInterrupt from error
                raise
            is_up = direction == Step.Direction.UP
            where = f" in operation {operations.begun} of {len(operations)}" if is_up and operations.begun else ""
            failure = _explained(error, migration, where)
            with suppress(Error):
                (end_unless_committed if locks.is_lost(error) else end)(Status.FAILED, summary(failure))
            if self.auto_rollback and is_up:
                self._undo_batch(migration, operations.begun, failure)
            failure.args = (f"{failure}{self._what_is_left()}",)
            raise failure from error
        end(Status.SUCCEEDED)
        return state

    def _what_is_left(self) -> str:
        left = len(self._applied)
        told = f"\nWhat {self.run} applied before that stays ({counted(left, 'step')}): rollback takes it back."
        return told if left else ""

    def _undo_batch(self, failed: Migration, begun: int, failure: ZeroDowntimeError) -> None:
        """Undo what this run applied, newest first, and what a migration that is not atomic left half done.

        Raises:
            RolledBack: says what failed, and that the database is as it was before.
            ZeroDowntimeError: says what failed, and which steps are there all the same.
        """
        self.auto_rollback = False
        if self._at_work:
            self._at_work[1].watchdog.new_step()  # a verdict on what failed is none on the undo
        half = rollback.half_of(failed, begun)
        undone = [half, *reversed(self._applied)] if half.operations else self._applied[::-1]
        try:
            self.loader.build_graph()
            rollback.refuse_irreversible(half)
            plan = rollback.plan_of(self, set(map(key_of, self._applied)))
        except (NotUndoable, Error) as error:
            failure.args = (f"{failure}\nNot rolled back: {in_full(error)}{self._what_is_left()}",)
            raise failure from failure.__cause__
        try:
            self._number, self._of = 0, len(undone)
            if half.operations:
                self.unapply_migration(self._create_project_state(with_applied_migrations=True), half)
            if plan:
                super().migrate([], plan=plan)
        except (ZeroDowntimeError, Error) as error:
            left = ", ".join(map(str, self._applied)) or "half of the failed migration"
            failure.args = (f"{failure}\nRolling back failed, too: {in_full(error)}\nStill there: {left}.",)
            raise failure from error
        what = str(failure).replace(f"{STAYS} ", "").replace(f"\n{STAYS}", "")
        raise RolledBack(
            f"{what}\nRolled back: {', '.join(map(str, undone)) or 'nothing, for nothing had been applied'}. "
            f"The database is as it was before {self.run}."
        ) from failure


def _is_interruption(error: BaseException | None) -> bool:
    """Whether it all began with Ctrl-C: Django, interrupted in a commit, cannot set the connection right again."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interruption(error.__context__))


def _run_deferred(editor: Any) -> None:
    """Do what the editor would do at its end, so that the record of the migration stands in the same transaction."""
    for sql in editor.deferred_sql:
        editor.execute(sql, None)
    editor.deferred_sql.clear()


def _explained(error: Exception, migration: Migration, where: str) -> ZeroDowntimeError:
    """Say what failed where, what is left of it, and what to do."""
    left = "Nothing of it is left." if migration.atomic else STAYS
    if isinstance(error, ZeroDowntimeError):
        error.args = (f"{migration} was stopped{where}. {error}\n{left}",)
        return error
    sentence = f"{migration} failed{where}: {in_full(error)}"
    if locks.is_lost(error):
        return StepFailed(f"{sentence}\nThe connection to the database was lost. Once it is back, migrate again.")
    if locks.sqlstate(error) == locks.NOT_ALLOWED:
        return StepFailed(f"{sentence}\n{left} Migrate as the role that owns it, or GRANT this one what it lacks.")
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file_of(migration)]
    place = f"\n  {lines[-1].filename}, line {lines[-1].lineno}: {lines[-1].line}" if lines else ""
    return StepFailed(f"{sentence}{place}\n{left} Mend it and migrate again; --traceback shows where it came from.")
