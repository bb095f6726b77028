"""How does a run write down what it does, so that it stays written whatever happens to the run?

It writes on a session of its own, which a migration's rollback does not reach. The same session holds the lock that
keeps other runs away, so both end with the process.
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

TIMES = re.compile(r"(?:, [a-z ()]+)? for \d+\.\d s\b")  # what changes of a session while it is waited for

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

NO_SCHEMA = "3F000"  # none that the role may use

NO_STEP: list[Any] = [None] * 9
"""The parameters with which ``END_STEP`` changes no row."""


@dataclass
class Holder:
    """A command of this process that holds the runner's lock of a database."""

    connection: BaseDatabaseWrapper
    session: BaseDatabaseWrapper
    """That of the ledger, which has the lock."""
    settings: dict[str, str]
    run: Run | None = None
    """Whose steps it carries out now."""


_holders: list[Holder] = []


def _open(session: BaseDatabaseWrapper, settings: dict[str, str]) -> None:
    bounded = {"lock_timeout": locks.milliseconds(conf.PATIENCE)}  # somebody may have locked a table of the ledger
    settings = {"application_name": "migrate: ledger", **locks.no_timeouts(session), **bounded, **settings}
    locks.put(session, settings)
    with session.cursor() as cursor:
        # The next commit of the migrating session takes to the disk what the ledger wrote before it.
        cursor.execute("SET synchronous_commit = off")


@contextmanager
def second_session(connection: BaseDatabaseWrapper) -> Iterator[Holder]:
    """Open another session on the same database: for the runner's lock and the ledger.

    It has an alias of its own and finds the same tables under their names: whatever decides that is copied.
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
    """Make sure that the ledger's session is there: the server, or what stands before it, may have ended an idle one.

    Raises:
        LockLost: if the run is not alone any more.
    """
    with suppress(Error):
        connections[alias].cursor().execute("SELECT 1")
        return
    _reopen(alias)


def _reopen(alias: str) -> None:
    """Open the session anew and take the runner's lock again.

    Somebody else may have it by now. That run waits for the lock of the session that migrates, if this is there still.
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
    """Wait until no other run is on this database and keep others out; yield the second session's alias.

    A run that was killed may have left a statement that the server still works at. That is waited for, too. Nobody is
    waited for within the same process: a receiver of Django's signals joins its command, which is between two steps.

    Raises:
        LockNotObtained: if somebody has locked django_migrations or the ledger, and that does not end.
        ImproperlyConfigured: if a setting is not what it may be.
        Nested: if a migration of this process calls it, or another thread while a command of this process is at work.
        TransactionPooling: where such a lock means nothing.
        WithinTransaction: if the connection is in a transaction, whose end decides about what the ledger says is done.
    """
    if outer := next((holder for holder in _holders if holder.connection is connection), None):
        if outer.run:
            raise Nested(str(outer.run))
        yield outer.session.alias
        return
    conf.refuse_odd()
    if locks.is_in_transaction(connection):
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
            say(f"the last statement of a run that was killed: {whom}. SELECT pg_terminate_backend(…) would end it")

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
    """Let no router of the project say that the tables of the ledger belong into another database."""
    before = router.routers
    router.routers = []
    try:
        yield
    finally:
        router.routers = before


def no_ledger(connection: BaseDatabaseWrapper, error: BaseException) -> NoLedger:
    """Say that its tables cannot be made, why, and which right is missing in which schema."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        ((schema, role),) = cursor.fetchall() or [(None, "")]
    states = {locks.sqlstate(each) for each in (error, error.__context__) if each}
    if not schema:
        advice = "No schema of the role's search_path exists: make one (CREATE SCHEMA), or set another search_path."
    elif states & {NO_SCHEMA, locks.NOT_ALLOWED}:
        advice = f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}, or migrate as the owner of the database."
    elif locks.READ_ONLY in states:
        advice = ADVICE[locks.READ_ONLY]
    else:
        advice = f"They would be made in the schema {schema}, by the role {role}. Mend that, and migrate again."
    said = f"The ledger's tables (zero_downtime_run, zero_downtime_step) cannot be made: {summary(error)}."
    return NoLedger(f"{said} Nothing was changed. {advice}")


class Steps:
    """Writes the steps of a run. How one ended is written in one statement with the beginning of the next.

    Should the process be killed in between, ``close_orphaned_runs`` finds out from django_migrations.
    """

    def __init__(self, alias: str, run: Run, tables: dict[type[Model], str]) -> None:
        self.alias, self.run = alias, run
        self.succeeded = 0
        self._id, self._end = 0, NO_STEP
        names = {"step": tables.get(Step, "zero_downtime_step"), "effect": tables.get(Effect, "zero_downtime_effect")}
        self._end_step, self._begin_step, self._note = (sql.format(**names) for sql in (END_STEP, BEGIN_STEP, NOTE))

    def begin(self, migration: Migration, direction: Step.Direction, *, faked: bool) -> None:
        values = [self.run.pk, migration.app_label, migration.name, direction.value, faked, checksum(migration)]
        ((self._id,),) = self._execute(self._begin_step, [*self._end, *values]).fetchall()
        self._end = NO_STEP

    def note(self, entries: list[Entry]) -> None:
        """Write entries of the journal of the step that has begun."""
        columns = zip(*((e.operation, e.kind.value, e.what, json.dumps(e.objects)) for e in entries), strict=True)
        self._execute(self._note, [self._id, *map(list, columns)])

    def end(self, status: Status, error: str, facts: dict[str, Any]) -> None:
        """Remember how the step ended; ``facts`` in the order of the columns from ``tries`` on."""
        self._end = [status.value, error, *facts.values(), timezone.now(), self._id]
        if status == Status.SUCCEEDED:
            self.succeeded += 1
        else:
            self.flush()

    def flush(self) -> None:
        if self._end is not NO_STEP:
            self._execute(self._end_step, self._end)
            self._end = NO_STEP

    def _execute(self, sql: str, values: list[Any]) -> psycopg.Cursor[Any]:
        """Execute as a prepared statement, which costs a third of what Django's cursor does.

        Do it once more on a new session if there was none any more.
        """
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
    """Mark and tell the runs that never said how they ended, if this role may. Hold the runner's lock meanwhile."""
    if alias and history.tables(alias):
        for dead in Run.objects.using(alias).filter(status=Status.RUNNING):
            with suppress(Error):  # it may not, or it would have to wait
                _close(dead, Status.DIED, "The process ended without a word: it was killed, or its machine was.")
                report("note", text=f"Found {dead.described}, whose process died.")


def _close(run: Run, status: Status, error: str = "") -> None:
    """Write how a run ended, and before it how those of its steps ended that could not say so themselves.

    A step stands in django_migrations from the moment of its commit, whatever it could say here.
    """
    alias, now = str(run._state.db), timezone.now()
    for step in run.steps.using(alias).filter(status=Status.RUNNING):
        done = history.is_done(alias, (step.app, step.name), step.direction)
        step.status, step.finished_at = Status.SUCCEEDED if done else status, now
        step.save(using=alias, update_fields=["status", "finished_at"])
    # What is written first holds: this may have been interrupted, and be done again.
    Run.objects.using(alias).filter(pk=run.pk, status=Status.RUNNING).update(
        status=status, error=error, finished_at=now
    )


def _prune(alias: str, days: int) -> None:
    """Delete runs that started more than ``days`` days ago, and their steps.

    Those stay whose journal a way back or the next run may need: something was left out, or a step is half done.
    """
    needed = Effect.objects.using(alias).filter(Q(kind=Kind.SKIPPED) | ~Q(step__status=Status.SUCCEEDED))
    old = Run.objects.using(alias).filter(started_at__lt=timezone.now() - timedelta(days=days))
    old.exclude(pk__in=needed.values("step__run")).delete()


@contextmanager
def recorded(alias: str, command: str, count: int, report: Report) -> Iterator[Steps]:
    """Open a run of so many steps, and say in it how it ended."""
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
        with suppress(Error):  # the database may be what went away
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
