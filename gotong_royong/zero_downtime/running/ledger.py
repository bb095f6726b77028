"""How does a run record what it does, so that the record stays whatever happens to the run?

It writes on a second session, so a migration's rollback does not erase the record. The same session holds the runner's
lock, so the lock ends with the process.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.models import Model, Q
from django.utils import timezone

from ..conf import conf
from ..exceptions import ADVICE, LockLost, Nested, NoLedger, RolledBack, WithinTransaction, for_the_ledger, summary
from ..models import Effect, Run, Status, Step, whoami
from ..postgres import locks
from ..postgres.journal import Entry, Kind
from . import history
from .loader import checksum
from .watchdog import Report

TIMES = re.compile(r"(?:, [a-z ()]+)? for \d+\.\d s\b")  # the changing part of a session's description

END_STEP = """
    UPDATE {step}
    SET status = %s, error = %s, tries = %s, lock_wait = %s, longest_blocked = %s, total_blocked = %s,
        blocked_sessions = %s, finished_at = %s
    WHERE id = %s
"""
BEGIN_STEP = f"""
    WITH ended AS ({END_STEP})
    INSERT INTO {{step}} (run_id, app, name, direction, faked, checksum)
    VALUES (%s, %s, %s, %s, %s, %s) RETURNING id
"""  # noqa: S608
NOTE = """
    INSERT INTO {effect} (step_id, operation, kind, what, objects_named)
    SELECT %s, * FROM unnest(%s::int[], %s::text[], %s::text[], %s::jsonb[])
"""

# Where a table without a schema is made: https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATH
SCHEMA = """
    SELECT quote_ident(nspname), quote_ident(current_user)
    FROM regexp_matches(current_setting('search_path'), '"((?:[^"]|"")+)"|([^",\\s]+)', 'g')
         WITH ORDINALITY AS said (name, place)
    JOIN pg_namespace ON nspname = replace(coalesce(replace(name[1], '""', '"'), lower(name[2])), '$user', current_user)
    ORDER BY place LIMIT 1
"""

WRITTEN = ["django_migrations", *(model._meta.db_table for model in (Run, Step, Effect))]

NO_SCHEMA = "3F000"  # the role may use none of the search_path

NO_STEP: list[Any] = [None] * 9
"""The parameters with which ``END_STEP`` changes no row."""


@dataclass
class Holder:
    """A command of this process that holds the runner's lock of a database."""

    connection: BaseDatabaseWrapper
    session: BaseDatabaseWrapper
    """The ledger's session, which has the lock."""
    settings: dict[str, str]
    run: Run | None = None
    """The run that is at work now."""


_holders: list[Holder] = []


def _open(session: BaseDatabaseWrapper, settings: dict[str, str]) -> None:
    bounded = {"lock_timeout": locks.milliseconds(conf.PATIENCE)}  # another session may lock a table of the ledger
    settings = {"application_name": "migrate: ledger", **locks.no_timeouts(session), **bounded, **settings}
    locks.put(session, settings)
    with session.cursor() as cursor:
        # The next commit of the migrating session also flushes the WAL of the ledger's earlier commits.
        cursor.execute("SET synchronous_commit = off")


@contextmanager
def second_session(connection: BaseDatabaseWrapper) -> Iterator[Holder]:
    """Open a second session on the same database, under an alias of its own, for the runner's lock and the ledger.

    It copies the role and the search path, so that it finds the same tables.
    """
    alias = f"{connection.alias}_ledger"
    connections[alias] = connection.copy(alias)
    try:
        settings = locks.look_up(connection, "session_authorization", "role", "search_path")
        _open(connections[alias], settings)
        yield Holder(connection, connections[alias], settings)
    finally:
        connections[alias].close()
        del connections[alias]


def awake(alias: str) -> None:
    """Reopen the ledger's session if it was lost: the server or a proxy may end an idle one.

    Raises:
        LockLost: if another run has begun meanwhile.
    """
    with suppress(Error):
        connections[alias].cursor().execute("SELECT 1")
        return
    _reopen(alias)


def _reopen(alias: str) -> None:
    """Open the session anew and take the runner's lock again.

    Another run may have it now. That run waits while the session that migrates holds the lock AT_WORK.
    """
    session = connections[alias]
    holder = next(holder for holder in _holders if holder.session is session)
    session.close()
    _open(session, holder.settings)
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [locks.RUNNER])
        is_ours = cursor.fetchone()[0]
    migrating = holder.connection.connection
    if not is_ours and not (migrating and migrating.info.backend_pid in locks.holders(session, locks.AT_WORK)):
        raise LockLost


@contextmanager
def only_runner(connection: BaseDatabaseWrapper, report: Report) -> Iterator[str]:
    """Wait until no other run is on this database, and keep others out; yield the second session's alias.

    It takes two advisory locks (https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS): one on
    the second session, one on the connection, which a killed run may hold while the server still executes its last
    statement. A receiver of Django's signals joins the command that sent the signal.

    Raises:
        LockNotObtained: if another session locks django_migrations or the ledger for longer than the patience.
        ImproperlyConfigured: if a setting is wrong.
        Nested: if a migration of this process calls it, or another thread while a command of this process is at work.
        TransactionPooling: if a proxy pools transactions, where session locks do not work.
        WithinTransaction: if the connection is in a transaction.
    """
    if outer := next((holder for holder in _holders if holder.connection is connection), None):
        if outer.run:
            raise Nested(str(outer.run))
        yield outer.session.alias
        return
    conf.refuse_odd()
    if locks.has_open_transaction(connection):
        raise WithinTransaction
    with locks.session_of_its_own(connection), second_session(connection) as holder:
        other, alias = holder.session, holder.session.alias
        connection.ensure_connection()
        locks.refuse_transaction_pooling(other, connection)
        said = ""

        def say(whom: str) -> None:
            nonlocal said
            if (session := TIMES.sub("", whom)) != said:
                report("waiting", whom=whom)
                said = session

        def say_run(whom: str) -> None:
            pids = locks.holders(other, locks.RUNNER)
            if ours := next((one for one in _holders if one.session.connection.info.backend_pid in pids), None):
                raise Nested(str(ours.run or "another command"))
            run = Run.objects.using(alias).filter(status=Status.RUNNING).last() if history.tables(alias) else None
            say(run.described if run else f"another migrate, {whom}")

        def say_statement(whom: str) -> None:
            say(f"the last statement of a run that was killed: {whom}. SELECT pg_terminate_backend(…) ends it")

        with (
            locks.session_settings(connection, **locks.no_idle_timeouts(connection)),
            locks.held(other, locks.RUNNER, say_run),
            locks.held(connection, locks.AT_WORK, say_statement),
        ):
            locks.wait_for_tables(other, WRITTEN, say)
            _holders.append(holder)
            try:
                yield alias
            finally:
                _holders.remove(holder)


@contextmanager
def unrouted() -> Iterator[None]:
    """Switch the project's routers off for the block: the ledger's tables belong into the migrated database."""
    before = router.routers
    router.routers = []
    try:
        yield
    finally:
        router.routers = before


def no_ledger(connection: BaseDatabaseWrapper, error: BaseException) -> NoLedger:
    """Return the error for tables that cannot be made: the reason, and the right that is missing in which schema."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        ((schema, role),) = cursor.fetchall() or [(None, "")]
    states = {locks.sqlstate(each) for each in (error, error.__context__) if each}
    if not schema:
        advice = "No schema of the role's search_path exists. Make one (CREATE SCHEMA), or set another search_path."
    elif states & {NO_SCHEMA, locks.NOT_ALLOWED}:
        advice = f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}, or migrate as the owner of the database."
    elif locks.READ_ONLY in states:
        advice = ADVICE[locks.READ_ONLY]
    else:
        advice = f"The role {role} makes them in the schema {schema}. Correct the cause, and migrate again."
    said = f"The ledger's tables (zero_downtime_run, zero_downtime_step) cannot be made: {summary(error)}."
    return NoLedger(f"{said} Nothing was changed. {advice}")


class Steps:
    """Writes the steps of a run. One statement writes the end of a step and the beginning of the next.

    If the process is killed in between, ``close_orphaned_runs`` learns the end from django_migrations.
    """

    def __init__(self, alias: str, run: Run, tables: dict[type[Model], str]) -> None:
        self.alias, self.run = alias, run
        self.succeeded = 0
        self._id, self._end = 0, NO_STEP
        names = {"step": tables.get(Step, "zero_downtime_step"), "effect": tables.get(Effect, "zero_downtime_effect")}
        self._end_step, self._begin_step, self._note = (sql.format(**names) for sql in (END_STEP, BEGIN_STEP, NOTE))

    def begin(self, migration: Migration, direction: Step.Direction, *, faked: bool) -> None:
        """Write that the step begins, and how the one before ended."""
        values = [self.run.pk, migration.app_label, migration.name, direction.value, faked, checksum(migration)]
        ((self._id,),) = self._execute(self._begin_step, [*self._end, *values]).fetchall()
        self._end = NO_STEP

    def note(self, entries: list[Entry]) -> None:
        """Write journal entries of the current step."""
        columns = zip(*((e.operation, e.kind.value, e.what, json.dumps(e.objects)) for e in entries), strict=True)
        self._execute(self._note, [self._id, *map(list, columns)])

    def end(self, status: Status, error: str, facts: dict[str, Any]) -> None:
        """Keep the end of the step for the next statement.

        Args:
            facts: the values of the columns from ``tries`` on, in their order.
        """
        self._end = [status.value, error, *facts.values(), timezone.now(), self._id]
        if status == Status.SUCCEEDED:
            self.succeeded += 1
        else:
            self.flush()

    def flush(self) -> None:
        """Write the end of the last step, if that is not written yet."""
        if self._end is not NO_STEP:
            self._execute(self._end_step, self._end)
            self._end = NO_STEP

    def _execute(self, sql: str, values: list[Any]) -> psycopg.Cursor[Any]:
        """Execute a prepared statement, for a third of what Django's cursor costs; again if the session was lost."""
        connection = connections[self.alias]
        try:
            with connection.wrap_database_errors:
                return psycopg.Cursor(connection.connection).execute(sql, values, prepare=True)
        except Error as error:
            if not locks.is_lost(error):
                raise
        _reopen(self.alias)
        with connection.wrap_database_errors:
            return psycopg.Cursor(connection.connection).execute(sql, values)


def close_orphaned_runs(alias: str, report: Report) -> None:
    """Mark and report the runs whose process died, if this role may. The caller holds the runner's lock."""
    if alias and history.tables(alias):
        for dead in Run.objects.using(alias).filter(status=Status.RUNNING):
            with suppress(Error):  # the role may not, or the table is locked
                _close(dead, Status.DIED, "The process was killed, or its machine went down.")
                report("note", text=f"Found {dead.described}, whose process died.")


def _close(run: Run, status: Status, error: str = "") -> None:
    """Write the end of a run, and of its steps that are still running.

    django_migrations says whether such a step was committed.
    """
    alias, now = str(run._state.db), timezone.now()
    for step in run.steps.using(alias).filter(status=Status.RUNNING):
        done = history.is_done(alias, (step.app, step.name), step.direction)
        step.status, step.finished_at = Status.SUCCEEDED if done else status, now
        step.save(using=alias, update_fields=["status", "finished_at"])
    # The first status stays: this may be interrupted, and run again.
    Run.objects.using(alias).filter(pk=run.pk, status=Status.RUNNING).update(
        status=status, error=error, finished_at=now
    )


def _prune(alias: str, days: int) -> None:
    """Delete runs that started more than ``days`` days ago, and their steps.

    Keep runs whose journal a rollback or the next run needs: a statement was skipped, or a step is half done.
    """
    needed = Effect.objects.using(alias).filter(Q(kind=Kind.SKIPPED) | ~Q(step__status=Status.SUCCEEDED))
    old = Run.objects.using(alias).filter(started_at__lt=timezone.now() - timedelta(days=days))
    old.exclude(pk__in=needed.values("step__run")).delete()


@contextmanager
def recorded(alias: str, command: str, count: int, report: Report) -> Iterator[Steps]:
    """Record a run of ``count`` steps around the block, with its end."""
    close_orphaned_runs(alias, report)
    tables = history.tables(alias)
    started = time.monotonic()
    run = Run.objects.using(alias).create(command=command, who=whoami(), process=os.getpid(), revision=revision())
    report("run_started", run=run.pk, command=command, steps=count)
    steps = Steps(alias, run, tables)
    holder = next(holder for holder in _holders if holder.session is connections[alias])
    holder.run = run

    def say_end(status: Status, error: str = "") -> None:
        seconds = time.monotonic() - started
        report("run_finished", run=run.pk, status=status.value, seconds=seconds, steps=steps.succeeded, error=error)

    try:
        yield steps
        steps.flush()
        awake(alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
        _close(run, Status.SUCCEEDED)
    except BaseException as error:
        status = _status_after(error)
        with suppress(Error):  # the database may be gone
            steps.flush()
            awake(alias)
            _close(run, status, for_the_ledger(error))
        say_end(status, for_the_ledger(error))
        raise
    finally:
        holder.run = None
    say_end(Status.SUCCEEDED)
    if conf.KEEP_RUNS is not None:
        _prune(alias, conf.KEEP_RUNS)


def _status_after(error: BaseException) -> Status:
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED
    return Status.ROLLED_BACK if isinstance(error, RolledBack) else Status.FAILED


def revision() -> str:
    """Return the git revision of the working directory; empty without git."""
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
