"""How does a run write down what it does, so that it stays written whatever happens to the run?

It writes on a session of its own, which a migration's rollback does not reach. The same session holds the lock that
keeps other runs away, so both end with the process.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from django.apps import apps
from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import TEST_DATABASE_PREFIX
from django.db.migrations import Migration
from django.db.models import Prefetch
from django.utils import timezone
from psycopg.pq import TransactionStatus

from gotong_royong.zero_downtime import catalog, locks, models
from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import LockLost, Nested, RolledBack, WithinTransaction, summary
from gotong_royong.zero_downtime.journal import Entry, Kind, Past
from gotong_royong.zero_downtime.loader import file_of
from gotong_royong.zero_downtime.models import Effect, Run, Status, Step
from gotong_royong.zero_downtime.stages import Key
from gotong_royong.zero_downtime.statements import Object
from gotong_royong.zero_downtime.watchdog import Report

APP = "zero_downtime"

END_STEP = f"""
    UPDATE {Step._meta.db_table}
    SET status = %s, error = %s, tries = %s, lock_wait = %s, longest_blocked = %s, total_blocked = %s,
        blocked_sessions = %s, finished_at = %s
    WHERE id = %s
"""  # noqa: S608
BEGIN_STEP = f"""
    WITH ended AS ({END_STEP})
    INSERT INTO {Step._meta.db_table} (run_id, app, name, direction, faked, checksum)
    VALUES (%s, %s, %s, %s, %s, %s) RETURNING id
"""  # noqa: S608

NOTE = f"""
    INSERT INTO {Effect._meta.db_table} (step_id, operation, kind, what, objects_named)
    SELECT %s, * FROM unnest(%s::int[], %s::text[], %s::text[], %s::jsonb[])
"""  # noqa: S608

NO_STEP: list[Any] = [None] * 9
"""The parameters with which ``END_STEP`` changes no row."""


def is_guarded(connection: BaseDatabaseWrapper) -> bool:
    """Whether runs on this database are guarded and recorded: on PostgreSQL, but not where tests run."""
    return not why_not_guarded(connection)


def why_not_guarded(connection: BaseDatabaseWrapper) -> str:
    """Say why runs on this database are not guarded; nothing if they are.

    A database is one of tests if its name was changed since Django started, as ``create_test_db`` and the clones of
    parallel tests do, and is the name that these give. What the settings call ``test_…`` is a database like any other.
    """
    if connection.vendor != "postgresql":
        return f"{connection.alias} is not a PostgreSQL database"
    configured = apps.get_app_config(APP).configured.get(connection.alias)  # type: ignore[attr-defined]
    name = str(connection.settings_dict["NAME"])
    made = connection.settings_dict["TEST"]["NAME"] or f"{TEST_DATABASE_PREFIX}{configured}"
    if configured in {None, name} or not name.startswith(str(made)):
        return ""
    return f"Django's test runner made the database {name}"


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
    settings = {"application_name": "migrate: ledger", **locks.no_timeouts(session), **settings}
    with session.cursor() as cursor:
        cursor.execute(locks.PUT, [False, list(settings), list(settings.values())])
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
        ImproperlyConfigured: if a time by which runs keep is none.
        Nested: if a migration of this process calls it, or another thread while a command of this process is at work.
        TransactionPooling: where such a lock means nothing.
        WithinTransaction: if the connection is in a transaction, whose end decides about what the ledger says is done.
    """
    if outer := next((holder for holder in _holders if holder.connection is connection), None):
        if outer.run:
            raise Nested(str(outer.run))
        yield outer.session.alias
        return
    conf.refuse_odd_times()
    session = connection.connection
    is_open = session and session.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}
    if connection.in_atomic_block or is_open:
        raise WithinTransaction
    with locks.session_of_its_own(connection), second_session(connection) as holder:
        other, alias = holder.session, holder.session.alias
        connection.ensure_connection()
        locks.refuse_transaction_pooling(other, connection)
        said = ""

        def say(whom: str) -> None:
            nonlocal said
            if whom != said:
                report("waiting", whom=whom)
                said = whom

        def say_run(whom: str) -> None:
            pids = locks.holders(other, locks.RUNNER)
            if ours := next((one for one in _holders if one.session.connection.info.backend_pid in pids), None):
                raise Nested(str(ours.run or "another command"))
            run = Run.objects.using(alias).filter(status=Status.RUNNING).last() if exists(other) else None
            say(run.described if run else f"another migrate, {whom}")

        def say_statement(whom: str) -> None:
            say(f"the last statement of a run that was killed: {whom}. SELECT pg_terminate_backend(…) would end it")

        with (
            locks.session_settings(connection, **locks.no_idle_timeouts(connection)),
            locks.held(other, locks.RUNNER, say_run),
            locks.held(connection, locks.AT_WORK, say_statement),
        ):
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


def exists(connection: BaseDatabaseWrapper) -> bool:
    """Whether the database has a ledger."""
    return catalog.table(connection, Step._meta.db_table) is not None


class Steps:
    """Writes the steps of a run. How one ended is written in one statement with the beginning of the next.

    Should the process be killed in between, ``bury_the_dead`` finds out from django_migrations.
    """

    def __init__(self, alias: str, run: Run) -> None:
        self.alias, self.run = alias, run
        self.succeeded = 0
        self._id, self._end = 0, NO_STEP

    def begin(self, migration: Migration, direction: Step.Direction, *, faked: bool) -> None:
        values = [self.run.pk, migration.app_label, migration.name, direction.value, faked, checksum(migration)]
        ((self._id,),) = self._execute(BEGIN_STEP, [*self._end, *values]).fetchall()
        self._end = NO_STEP

    def note(self, entries: list[Entry]) -> None:
        """Write entries of the journal of the step that has begun."""
        columns = zip(*((e.operation, e.kind.value, e.what, json.dumps(e.objects)) for e in entries), strict=True)
        self._execute(NOTE, [self._id, *map(list, columns)])

    def end(self, status: Status, error: str, facts: dict[str, Any]) -> None:
        """Remember how the step ended; ``facts`` in the order of the columns from ``tries`` on."""
        self._end = [status.value, error, *facts.values(), timezone.now(), self._id]
        if status == Status.SUCCEEDED:
            self.succeeded += 1
        else:
            self.flush()

    def flush(self) -> None:
        if self._end is not NO_STEP:
            self._execute(END_STEP, self._end)
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


def past(alias: str, key: Key) -> Past:
    """Return what the ledger tells of the migration since it was taken back last; nothing where none can be read."""
    awake(alias)
    past = Past()
    if not models.may("SELECT", Effect, alias):
        return past
    effects = Prefetch("effects", Effect.objects.using(alias))
    steps = models.steps_since_reset(alias, key).order_by("pk")
    for step in steps.only("pk", "run", "direction", "status").prefetch_related(effects):
        told = sorted(step.effects.all(), key=lambda effect: effect.pk)
        is_up, is_done = step.direction == Step.Direction.UP, step.status == Status.SUCCEEDED
        if is_up and past.complete:  # somebody took it back without the ledger
            past = Past()
        entries = [
            Entry(e.operation, Kind(e.kind), e.what, tuple(Object(*each) for each in e.objects_named)) for e in told
        ]
        if is_up:
            for entry in entries:
                past.add(entry, step.run_id)
            past.complete = is_done
            continue
        for number in (entry.operation for entry in entries if entry.kind == Kind.ENDED):
            past.pop(number, None)
            past.taken_back.add(number)
        if is_done:
            past = past.rest() if past.taken_back else Past()
    return past


def bury_the_dead(alias: str, report: Report) -> None:
    """Mark and tell the runs that never said how they ended, if this role may. Hold the runner's lock meanwhile."""
    if not alias or not models.may("UPDATE", Run, alias):
        return
    for dead in models.bury_the_dead(alias):
        report("note", text=f"Found {dead.described}, whose process died.")


@contextmanager
def recorded(alias: str, command: str, count: int, report: Report) -> Iterator[Steps]:
    """Open a run of so many steps, and say in it how it ended."""
    bury_the_dead(alias, report)
    started = time.monotonic()
    run = Run.objects.using(alias).create(
        command=command, who=models.whoami(), process=os.getpid(), revision=revision()
    )
    report("run_started", run=run.pk, command=command, steps=count)
    steps = Steps(alias, run)
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
        models.finish(run, Status.SUCCEEDED)
    except BaseException as error:
        status = _status_after(error)
        with suppress(Error):  # the database may be what went away
            steps.flush()
            awake(alias)
            models.close(run, status, summary(error))
        say_end(status, summary(error))
        raise
    finally:
        holder.run = None
    say_end(Status.SUCCEEDED)
    if conf.KEEP_RUNS is not None:
        models.prune(alias, conf.KEEP_RUNS)


def _status_after(error: BaseException) -> Status:
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED
    return Status.ROLLED_BACK if isinstance(error, RolledBack) else Status.FAILED


def checksum(migration: Migration) -> str:
    """Return the SHA-256 of the file that the migration stands in; nothing if there is none."""
    try:
        # A file object for each of a thousand would take twice the time.
        file = os.open(file_of(migration), os.O_RDONLY)
    except OSError:
        return ""
    try:
        return hashlib.sha256(os.read(file, os.fstat(file).st_size)).hexdigest()
    finally:
        os.close(file)


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
