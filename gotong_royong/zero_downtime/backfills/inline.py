"""What does a migration do with a backfill: all of it at once, or leave it to a worker?

A migration does all of it if the table is small, and in databases without the tables of backfills, such as those of
tests.
"""

import time
from contextlib import suppress

from django.db import models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..apps import why_not_guarded
from ..conf import conf
from ..exceptions import BackfillFailed, BackfillRefused, counted
from ..models import Backfill
from ..postgres import catalog, locks
from . import control, ranges, statements
from .batches import LEFT, POLL
from .declarations import declared
from .statements import Work
from .worker import Worker

ROWS_IN_A_BLOCK = 50  # estimate for a table that was never analyzed

Status = Backfill.Status


def start(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> None:
    """Do the backfill now if its table is small, else leave it to a worker.

    Args:
        model: the historical model at this migration.

    Raises:
        BackfillFailed: if it fails here, or rows are set aside.
        BackfillRefused: in a transaction, which would keep the row locks of all batches.
    """
    if not _is_recorded(connection) or (rows := _rows(connection, model)) <= conf.BACKFILL_INLINE:
        finish(name, connection, model)
        return
    row = _pending_or_ended(name, connection)
    if row.status == Status.SUCCEEDED:
        return
    is_paused = row.status == Status.PAUSED
    then = f"it is paused until backfill resume {name}" if is_paused else control.who_takes_up(name)
    _print(f"About {rows:,} rows, more than ZERO_DOWNTIME_BACKFILL_INLINE, are left to the background: {then}.")
    control.pending.send(Backfill, name=name, alias=connection.alias)


def finish(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> None:
    """Do the backfill now, however large its table is: a later migration of the same run needs it.

    Args:
        model: the historical model at this migration.

    Raises:
        BackfillFailed: if it fails, or rows are set aside.
        BackfillRefused: in a transaction, or if it is paused.
    """
    if not _is_recorded(connection):
        with locks.session_settings(connection, **locks.ALL_ROWS):
            _say(_at_once(name, connection, model))
        return
    row, is_small = _pending_or_ended(name, connection), _rows(connection, model) <= conf.BACKFILL_INLINE
    if row.status != Status.SUCCEEDED:
        _to_its_end(row, model, at_full_speed=is_small)


def require(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> None:
    """Make sure that the backfill is done; do the rest now if that is at most ``BACKFILL_INLINE`` rows.

    Raises:
        BackfillRefused: if more rows are left, or it is paused or canceled.
        BackfillFailed: if the rest fails here.
    """
    if not _is_recorded(connection):
        with locks.session_settings(connection, **locks.ALL_ROWS):
            _at_once(name, connection, model)
        return
    row, progress = control.status(name, connection.alias)
    rest = _rows(connection, model) * (1 - progress.share)
    if row.status == Status.SUCCEEDED:
        if not (rest := _have_come(name, connection, model)):
            return
        control.retry(row)
    if rest > conf.BACKFILL_INLINE or row.status in {Status.PAUSED, Status.CANCELED}:
        action = control.again(row) if row.status in {Status.PAUSED, Status.CANCELED, Status.FAILED} else "run"
        raise BackfillRefused(
            f"The backfill {name} must be done before this, but it is {row.status}, and about {rest:,.0f} rows may be "
            f"left. Run backfill {action} {name}, then migrate."
        )
    _to_its_end(_pending_or_ended(name, connection), model, at_full_speed=True)


def _have_come(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> int:
    """Return how many rows to do old code has written since the backfill ended. Reads the table.

    Counts to one more than ``BACKFILL_INLINE``.
    """
    work = Work(declared(name), model, connection.alias)
    if work.declaration.where is None:
        return 0
    with locks.session_settings(connection, **locks.ALL_ROWS):
        return len(work.to_do.values_list("pk")[: conf.BACKFILL_INLINE + 1])


def take_back(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> None:
    """Do the reverse of this backfill, however large its table is, and forget both.

    A backfill that has not ended is canceled first, and its ranges are taken from its workers. Locks the rows of both
    in the tables of backfills.

    Raises:
        BackfillRefused: without a reverse, without the reverse's model, in a transaction, or if a worker stays in a
            batch for longer than PATIENCE.
        BackfillFailed: if the reverse fails.
    """
    reverse = declared(name).reverse
    if not reverse:
        raise BackfillRefused(f"{name} names no reverse, so it cannot be taken back.")
    try:
        model = model._meta.apps.get_model(declared(reverse).model)  # may be another model
    except LookupError:
        raise BackfillRefused(
            f"{reverse}, which takes {name} back, changes {declared(reverse).model}, which is not there at this "
            "migration. Let the migration depend on the one that creates that model, then migrate."
        ) from None
    if not _is_recorded(connection):
        finish(reverse, connection, model)
        return
    _refuse_in_a_transaction(reverse, connection)
    alias = connection.alias
    if name in control.names(alias):
        _stop(control.known(name, alias))
    if (row := control.get_or_create(reverse, alias)).status == Status.SUCCEEDED:
        control.retry(row)  # it ran for an earlier rollback
    finish(reverse, connection, model)
    for each in (name, reverse):
        control.forget(each, alias)


def forget(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> None:
    """Stop the backfill and forget it, so that it may run again; the changed rows stay changed.

    Raises:
        BackfillRefused: if a worker stays in a batch for longer than PATIENCE.
    """
    if _is_recorded(connection) and name in control.names(connection.alias):
        _stop(control.known(name, connection.alias))
        control.forget(name, connection.alias)


def _stop(row: Backfill) -> None:
    """Cancel it, and wait until no worker is in a batch of it."""
    with suppress(BackfillRefused):  # it has ended already
        control.cancel(row)
    until = time.monotonic() + conf.PATIENCE
    while worker := ranges.take_away(row):
        if time.monotonic() > until:
            raise BackfillRefused(
                f"{row} is {row.status}, but {worker} is still in the middle of a batch of it after {conf.PATIENCE:g} "
                "s. End that process, then migrate."
            )
        time.sleep(POLL)


def _is_recorded(connection: BaseDatabaseWrapper) -> bool:
    return not why_not_guarded(connection) and control.is_recorded(connection.alias)


def _pending_or_ended(name: str, connection: BaseDatabaseWrapper) -> Backfill:
    _refuse_in_a_transaction(name, connection)
    row = control.get_or_create(name, connection.alias)
    if row.status in {Status.FAILED, Status.CANCELED}:
        control.retry(row)
    return row


def _refuse_in_a_transaction(name: str, connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block:
        raise BackfillRefused(
            f"The backfill {name} would hold the locks of all its rows until this migration ends. "
            "Set atomic = False in the migration, with nothing else in it."
        )


def _rows(connection: BaseDatabaseWrapper, model: type[models.Model]) -> int:
    """Return the estimated number of rows of the table."""
    name = connection.ops.quote_name(model._meta.db_table)
    table = catalog.tables(connection, [name]).get(name)
    if table is not None and table.rows is not None:
        return table.rows
    return sum(part.blocks for part in ranges.parts_of(connection, model)) * ROWS_IN_A_BLOCK


def _to_its_end(row: Backfill, model: type[models.Model], *, at_full_speed: bool) -> None:
    # Half the lock budget: others wait for one of its rows no longer than for a lock of the migration.
    row = Worker(row, model=model, target=conf.LOCK_TIMEOUT / 2, at_full_speed=at_full_speed).run()
    if row.status == Status.FAILED:
        raise BackfillFailed(f"{row} failed. {row.error}")
    if row.status != Status.SUCCEEDED:
        raise BackfillRefused(f"{row} is {row.status}. Run backfill {control.again(row)} {row}, then migrate.")
    _say(control.progress(row).rows)


def _at_once(name: str, connection: BaseDatabaseWrapper, model: type[models.Model]) -> int:
    """Do the backfill without recording progress; return the number of rows. Locks them (FOR NO KEY UPDATE)."""
    work, done = Work(declared(name), model, connection.alias), 0
    if work.declaration.where is None:
        with transaction.atomic(using=connection.alias):
            return statements.change(work, models.Q())
    while keys := list(work.to_do.values_list("pk", flat=True)[:LEFT]):
        with transaction.atomic(using=connection.alias):
            keys = statements.keys_of(work, models.Q(pk__in=keys))
            statements.change_keys(work, keys)
        done += len(keys)
    return done


def _say(rows: int) -> None:
    if rows:
        _print(f"{counted(rows, 'row')}, all done.")


def _print(text: str) -> None:
    """Print beside the step. A closed output does not make the step fail."""
    with suppress(OSError, ValueError):
        print(f"\n    {text}", end="", flush=True)
