"""How is a plan carried out so that nobody waits for it longer than the operator allows?

The executor is Django's. Around each migration it sets the guard, retries after a lock timeout, writes the ledger, and
undoes a failed batch. On test databases it does none of this.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from django.db import Error, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ProjectState

from ..apps import APP
from ..exceptions import HalfCommitted, NotUndoable, RolledBack, ZeroDowntimeError, counted, in_full
from ..models import Run, Status, Step
from ..postgres import locks
from ..postgres.editors import idempotent_ddl, schema_editor_class
from ..postgres.journal import Past
from ..postgres.schema import SchemaEditor
from ..stages import Key, Plan, Stage, before_deploy, key_of, stages_of
from . import history, ledger, recall, rollback, undo
from .guard import Guard, guarded
from .loader import Loader, groups
from .progress import Progress, is_interruption
from .signals import between_signals
from .states import Rolling, has_own_transaction
from .watchdog import Report

OneTry = Callable[[Progress, ProjectState], ProjectState]


class Executor(MigrationExecutor):
    """Django's executor, with a lock budget, a watchdog and a ledger.

    Args:
        alias: of the second session, which writes the ledger; empty: nothing is guarded or recorded.
        command: the name of this run in the ledger.
        stage: the part of the plan to carry out; None for all of it.
        auto_rollback: whether to undo what the run applied when a step fails.
        report: called with each event and its facts.
        backup_folder: the folder for a backup before the first step, if any.
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
        self.alias, self.command, self.stage, self.auto_rollback = alias, command, stage, auto_rollback
        self.report, self.backup_folder, self.recorder = report, backup_folder, MigrationRecorder(connection)
        self.held_back: list[str] = []
        self.run: Run | None = None
        self._at_work: tuple[ledger.Steps, Guard] | None = None
        self.faked: set[Key] = set()
        """The migrations that were only recorded; a rollback removes only their record."""
        self._applied: list[Progress] = []
        self._failed_step: Progress | None = None
        self._half: set[Key] = set()
        """The unapplied migrations that are taken back, because an earlier run failed in them."""
        self._failed_before: set[Key] = set()
        self.agreed: Collection[tuple[str, int]] | None = None
        """See ``JournalingEditor.agreed``."""
        self.left: list[undo.Left] = []
        self._number = self._of = self._taken_back = 0
        self._stages: dict[Key, Stage] = {}
        self._rolling: Rolling | None = None

    def migration_plan(self, targets: Any, clean_start: bool = False) -> Plan:
        plan: Plan = super().migration_plan(targets, clean_start)
        plan = plan if clean_start else recall.with_halves(self, plan, targets, super().migration_plan)
        if self.stage == Stage.PRE_DEPLOY and not clean_start:
            plan, self.held_back = before_deploy(plan, self.loader.graph, self.stages_of(plan))
        return plan

    def stages_of(self, plan: Plan) -> dict[Key, Stage]:
        """Return the stage of each migration of the plan. Asks the database for its tables."""
        return stages_of(plan, self.loader.graph, self.connection.introspection.table_names())

    def _create_project_state(self, with_applied_migrations: bool = False) -> ProjectState:
        django: Any = super()
        if not with_applied_migrations or not self.loader.graph.nodes.keys() <= self.loader.applied_migrations.keys():
            return django._create_project_state(with_applied_migrations)  # type: ignore[no-any-return]
        self.loader.final = self.loader.final or django._create_project_state(with_applied_migrations)
        return self.loader.project_state()

    def check_replacements(self) -> None:
        """Skip Django's query for the applied migrations if no migration replaces others."""
        if self.loader.replacements:
            super().check_replacements()

    def migrate(
        self, targets: Any, plan: Any = None, state: Any = None, fake: bool = False, fake_initial: bool = False
    ) -> Any:
        """Carry out the plan as one run; returns the state after it, as Django's does.

        Raises:
            NoLedger: if the ledger's tables cannot be made.
            HistoryLost: if the plan would change data of tables whose record is lost.
            HalfDone: if ``fake`` would record a half done migration.
            BackupFailed: if ``backup_folder`` is set and the backup fails.
            ZeroDowntimeError: if a step fails, with what stays; ``RolledBack`` if the run was undone.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, with what stays.
        """
        if plan is None:
            plan = self.migration_plan(targets)
        unmakes_ledger = any(backwards and migration.app_label == APP for migration, backwards in plan)
        if not plan:
            ledger.close_orphaned_runs(self.alias, self.report)
            self.report("nothing_to_do")
            if self.backup_folder:
                self.report("note", text="There is nothing to do, so no backup was made.")
        if not plan or unmakes_ledger or not self.alias:
            return super().migrate(targets, plan, state, fake, fake_initial)
        if not fake and not fake_initial:
            recall.refuse_unwitnessed(self.connection, self.loader, plan)
        with ExitStack() as stack:
            made = self._make_ledger()
            if state is not None:
                for migration in made:
                    migration.mutate_state(state, preserve=False)
            plan = [step for step in plan if step[0] not in made]
            back = {key_of(migration): migration for migration, backwards in plan if backwards}
            self._half = back.keys() - self.loader.applied_migrations.keys()
            self.loader.applied_migrations |= back  # Django takes nothing else back
            self._failed_before = history.failed(self.alias)
            if fake and not back:
                recall.refuse_half_done(self, plan)
            self._number, self._of, self._stages = 0, len(plan), self.stages_of(plan)
            steps = stack.enter_context(ledger.recorded(self.alias, self.command, len(plan), self.report))
            self.run = steps.run
            if self.backup_folder:
                from . import backups

                self.run.backup = str(backups.take(self.connection, self.backup_folder, self.report))
                self.run.save(using=self.alias, update_fields=["backup"])
            self._at_work = steps, stack.enter_context(guarded(self.connection, self.report))
            try:
                return super().migrate(targets, plan, state, fake, fake_initial)
            except KeyboardInterrupt as error:
                said = str(error) or "Stopped by Ctrl-C or SIGTERM."
                raise KeyboardInterrupt(f"{said}{self._what_is_different()}") from error

    def _make_ledger(self) -> list[Migration]:
        """Apply the ledger's own migrations, unrecorded; return them.

        Raises:
            NoLedger: if its tables cannot be made.
        """
        plan = super().migration_plan(self.loader.graph.leaf_nodes(APP), clean_start=not history.tables(self.alias))
        try:
            if plan:
                with idempotent_ddl(self.connection), ledger.unrouted():
                    super().migrate([], plan=plan)
        except (Error, MigrationSchemaMissing) as error:
            raise ledger.no_ledger(self.connection, error) from error
        self.loader.applied_migrations |= {(APP, migration.name): migration for migration, _ in plan}
        return [migration for migration, _ in plan]

    def _migrate_all_forwards(self, state: ProjectState, plan: Plan, full_plan: Plan, **fakes: bool) -> ProjectState:
        """Apply the plan as Django does, but without rendered models: each operation renders those that it needs."""
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
        if fake:
            self.faked.add(key_of(migration))
        step = self._begin(*at_work, migration, Step.Direction.UP, faked=fake)
        state = self._carry_out(step, self._forwards, state)
        step.journal.told.complete = True
        self._applied.append(step)
        self.loader.applied_migrations[key_of(migration)] = migration
        return state

    def unapply_migration(self, state: ProjectState, migration: Migration, fake: bool = False) -> ProjectState:
        if (at_work := self._at_work) is None:
            return super().unapply_migration(state, migration, fake)
        step = self._begin(*at_work, migration, Step.Direction.DOWN, faked=fake or key_of(migration) in self.faked)
        state = self._carry_out(step, self._backwards, state)
        self.left += step.left
        self._taken_back += self._failed_step is None
        self._applied = [other for other in self._applied if other.migration != migration]
        return state

    def _begin(
        self, steps: ledger.Steps, guard: Guard, migration: Migration, direction: Step.Direction, *, faked: bool
    ) -> Progress:
        self._number += 1
        key, how = key_of(migration), dict[str, Any](faked=faked, number=self._number, of=self._of)
        past = self.past(*key) if direction == Step.Direction.UP and key in self._failed_before else Past()
        past = Past() if past.complete else past
        return Progress(steps, guard, migration, direction, past, stage=self._stages[key], **how)

    def _carry_out(self, step: Progress, one_try: OneTry, state: ProjectState) -> ProjectState:
        """Carry out one migration; retry until it gets its locks."""
        way, tell = "apply" if step.is_up else "unapply", self.progress_callback or (lambda *told: None)
        tell(f"{way}_start", step.migration, step.faked)
        try:
            state = step.guard.trying(lambda attempt: self._try(step, attempt, one_try, state))
        except BaseException as error:
            failure = self._failed(step, error)
            if failure is error:
                raise
            raise failure from error
        step.end(Status.SUCCEEDED)
        tell(f"{way}_success", step.migration, step.faked)
        return state

    def _try(self, step: Progress, attempt: int, one_try: OneTry, state: ProjectState) -> ProjectState:
        """Try once; in a transaction a second time, carefully, if PostgreSQL says that a part is done already.

        Python that raised an error does not run again.
        """
        step.tries = attempt
        try:
            return one_try(step, state)
        except (ProgrammingError, ValueError) as error:
            is_done = isinstance(error, ValueError) or locks.sqlstate(error) in locks.THERE_ALREADY | undo.GONE
            operation = step.journal.operation
            is_code = bool(operation and undo.runs_code(operation))
            if step.careful or not is_done or is_code or not step.guard.may_repeat:
                raise
        step.careful = True
        return one_try(step, state)

    def _forwards(self, step: Progress, state: ProjectState) -> ProjectState:
        migration, journal = step.migration, step.journal
        if step.used:  # a failed try may have changed the state
            state = self._create_project_state(with_applied_migrations=True)
        step.used = True
        journal.new_try()
        with self._editor(step) as editor:
            if editor and type(migration).apply is not Migration.apply:
                with step.guard.carrying_out(*migration.operations), editor.leaving_no_transaction():
                    state = migration.apply(state.clone(), editor)
            elif editor:
                self._rolling = self._rolling if self._rolling and self._rolling.state is state else Rolling(state)
                self._go_on(step, self._rolling, editor)
            if editor:
                editor.run_deferred()
                journal.before_commit()
            self.record(migration)
        return state

    def _go_on(self, step: Progress, rolling: Rolling, editor: SchemaEditor) -> None:
        """Carry out the operations that no earlier try or run did."""
        migration, journal = step.migration, step.journal
        undo.refuse_edited(migration, journal.told)
        for number, group in enumerate(groups(migration), 1):
            if journal.has_ended(number):
                rolling.moves(group, migration.app_label)
                continue
            journal.begin(number, group[0])
            undo.look_before(group[0], editor)
            for operation in group:
                try:
                    rolling.perform(operation, migration, editor)
                except Exception as error:
                    if operation is group[0] and has_own_transaction(operation, migration) and not locks.is_lost(error):
                        journal.undone()
                    raise
            if not migration.atomic:
                editor.run_deferred()
            journal.end(settled=editor.settled)

    def _backwards(self, step: Progress, state: ProjectState) -> ProjectState:
        migration, journal = step.migration, step.journal
        journal.new_try()
        with self._editor(step) as editor:
            if editor and type(migration).unapply is not Migration.unapply:
                with step.guard.carrying_out(*migration.operations), editor.leaving_no_transaction():
                    state = migration.unapply(state, editor)
            elif editor:
                past = self._past(step)
                run = self.run.pk if self.run and self._failed_step else None
                step.left = [*undo.take_back(migration, state, editor, journal, past, run)]
            if editor:
                editor.run_deferred()
            self.record(migration, applied=False)
        return state

    def record(self, migration: Migration, *, applied: bool = True) -> None:
        """Record the migration with all that it replaces, as Django's ``record_migration`` does from 6.0 on."""
        record = self.recorder.record_applied if applied else self.recorder.record_unapplied
        for app, name in history.recorded_together(self.loader, migration, applied=applied):
            record(app, name)

    def _past(self, step: Progress) -> Past:
        """Return the journal of a migration: this run's, else the ledger's."""
        for other in [*self._applied, *filter(None, [self._failed_step])]:
            if other.migration == step.migration:
                return other.journal.told
        return self.past(*key_of(step.migration))

    def past(self, app: str, name: str) -> Past:
        """Return the ledger's journal of a migration. It may be empty though the migration is applied."""
        if self.alias:
            ledger.awake(self.alias)
        past = history.past(self.alias or self.connection.alias, (app, name))
        is_applied = (app, name) in self.loader.applied_migrations.keys() - self._half
        if past.complete and not is_applied:  # it was taken back without the ledger
            past = Past()
        past.complete = is_applied
        return past

    def _editor(self, step: Progress) -> Any:
        if step.faked:
            return nullcontext()
        editor = schema_editor_class(self.connection.SchemaEditorClass)(self.connection, atomic=step.migration.atomic)
        editor.careful, editor.journal = step.careful, step.journal
        editor.carrying_out, editor.report = step.guard.carrying_out, self.report
        editor.agreed = self.agreed
        return editor

    def _failed(self, step: Progress, error: BaseException) -> BaseException:
        """Record the failure of a step, undo the batch with ``auto_rollback``, and return the error to raise."""
        if is_interruption(error) or not isinstance(error, Exception):
            left = "The database does not answer whether it was committed."
            with suppress(Error):
                is_done = step.end_unless_committed(Status.INTERRUPTED, "")
                left = "It was done by then." if is_done else step.what_is_left
                self._applied += [step] * (is_done and step.is_up)
            return KeyboardInterrupt(f"Stopped by Ctrl-C or SIGTERM in {step.migration}. {left}")
        is_to_be_undone = self.auto_rollback and step.is_up and not isinstance(error, HalfCommitted)
        failure = step.explained(error, "" if is_to_be_undone else step.what_is_left)
        with suppress(Error):
            (step.end_unless_committed if locks.is_lost(error) else step.end)(Status.FAILED, failure.kept)
        if is_to_be_undone:
            return self._undo_batch(step, failure)
        return failure.saying(f"{failure}{self._what_is_different()}")

    def _what_is_different(self, advice: str = ": rollback takes it back") -> str:
        up, down = counted(len(self._applied), "step"), counted(self._taken_back, "step")
        stays = f"\nWhat {self.run} applied before that stays ({up}){advice}."
        gone = f"\nWhat {self.run} took back before that is no longer applied ({down}): migrate applies it again."
        return stays * bool(self._applied) + gone * bool(self._taken_back)

    def _undo_batch(self, failed: Progress, failure: ZeroDowntimeError) -> ZeroDowntimeError:
        """Undo what this run applied, newest first, and what the failed migration left half done.

        Returns:
            A ``RolledBack`` with the failure and what was undone; or the failure, with what stays.
        """
        self.auto_rollback = False
        failed.guard.watchdog.new_step()  # forgets its verdict on the failed step
        self._failed_step = failed
        is_half = not failed.migration.atomic and undo.is_half_done(failed.migration, failed.journal.told)
        steps = [*([failed] if is_half else []), *self._applied[::-1]]
        undone = [step.migration for step in steps]
        told = f"{failure}\n{failed.what_is_left}"
        try:
            self.loader.build_graph()
            undo.refuse_irreversible(failed.migration, failed.journal.lasting)
            plan = rollback.plan_of(self, {key_of(step.migration) for step in self._applied}, self.faked)
        except (NotUndoable, Error) as error:
            return failure.saying(f"{told}\nNot rolled back: {in_full(error)}{self._what_is_different('')}")
        try:
            self._number, self._of = 0, len(undone)
            half = [(self.loader.graph.nodes[key_of(failed.migration)], True)] if failed in steps else []

            def take_back() -> None:
                for migration, _ in half:
                    self.unapply_migration(self._create_project_state(with_applied_migrations=True), migration)
                if plan:
                    super(Executor, self).migrate([], plan=plan)

            self.left += map(undo.Left, between_signals(self, [*half, *plan], take_back, go_on=True))
        except Exception as error:  # noqa: BLE001  (a receiver may raise anything)
            stays = [str(step.migration) for step in self._applied] or ["half of the failed migration"] * is_half
            left = ", ".join(stays) or "nothing"
            return failure.saying(f"{told}\nRolling back failed, too: {in_full(error)}\nStill there: {left}.")
        return failure.saying(
            f"{failure}\nRolled back: {', '.join(map(str, undone)) or 'nothing, because nothing was applied'}. "
            f"{undo.outcome(self.run, undone, self.left)}",
            RolledBack,
        )
