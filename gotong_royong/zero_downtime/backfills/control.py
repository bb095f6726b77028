"""How is a backfill started, paused and canceled, and how far is it?

The database holds all of it, so any process can ask and control. Workers read the status before every batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.apps import apps
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, Error, connections, transaction
from django.db.models import Avg, BooleanField, Count, F, Max, Q, QuerySet, Sum
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Now
from django.dispatch import Signal

from ..exceptions import BackfillRefused, NoLedger
from ..models import Backfill, BackfillEvent, BackfillRange, SetAside
from ..postgres import catalog
from .declarations import declared, takes_back
from .ranges import HELD, cancel_verification
from .statements import KEYS

Status = Backfill.Status

AT_WORK = Q(finished_at=None) & Q(RawSQL(HELD, (), output_field=BooleanField()))  # noqa: S611


pending = Signal()
"""Sent with ``name`` and ``alias`` of a backfill that workers should take up."""


def who_takes_up(name: str) -> str:
    """Say who takes up a pending backfill."""
    if not pending.has_listeners(Backfill):
        return f"no queue is installed, so it waits for backfill run {name}"
    if not _queue_is_there():
        lacks = "the queue cannot be reached or has no tables"
        return f"{lacks}, so it waits for backfill run {name}, or for migrate and a worker of the queue"
    return f"a worker of the queue takes it up, or backfill run {name}"


def _queue_is_there() -> bool:
    """Whether the queue's table exists; True without Procrastinate, because another receiver may be any queue."""
    if not apps.is_installed("procrastinate.contrib.django"):
        return True
    try:
        connection = connections[getattr(settings, "PROCRASTINATE_DATABASE_ALIAS", DEFAULT_DB_ALIAS)]
        return catalog.table(connection, "procrastinate_jobs") is not None
    except Error:
        return False


class Progress(NamedTuple):
    """How far a backfill is: ``share`` of its current sweep, from 0 to 1; times in seconds."""

    share: float
    rows: int
    batches: int
    longest_batch: float
    workers: int
    set_aside: int
    seconds: float
    remaining: float | None

    @property
    def rate(self) -> float:
        """Rows a second since it began."""
        return self.rows / self.seconds if self.seconds else 0.0


NOT_STARTED = Progress(0.0, 0, 0, 0.0, 0, 0, 0.0, None)


def is_recorded(alias: str) -> bool:
    """Whether the database has the tables in which backfills are recorded."""
    connection = connections[alias]
    return connection.vendor == "postgresql" and catalog.table(connection, BackfillEvent._meta.db_table) is not None


def _recorded(name: str, alias: str) -> Backfill | None:
    return Backfill.objects.using(alias).filter(name=name).first() if is_recorded(alias) else None


def get_or_create(name: str, alias: str) -> Backfill:
    """Return the row of the backfill; create a pending one if there is none.

    Raises:
        UnknownBackfill: if neither the database nor the code knows it.
        NoLedger: if the tables of backfills do not exist.
    """
    if not is_recorded(alias):
        raise NoLedger(f"The tables of backfills are not in the database {alias}. Run migrate, and then this again.")
    row = Backfill.objects.using(alias).filter(name=name).first()
    if row is None:
        row, _ = Backfill.objects.using(alias).get_or_create(name=declared(name).name)
        refresh(row)
    return row


def known(name: str, alias: str) -> Backfill:
    """Return the row of the backfill. Locks and changes nothing.

    Raises:
        UnknownBackfill: if neither the database nor the code knows it.
        BackfillRefused: if it was never started.
    """
    row = _recorded(name, alias)
    if row is None:
        raise BackfillRefused(f"{declared(name).name} is not started. backfill run {name} starts it.")
    return row


def names(alias: str) -> list[str]:
    """Return the names of the backfills in the database, including those that this code no longer declares."""
    return list(Backfill.objects.using(alias).values_list("name", flat=True)) if is_recorded(alias) else []


def status(name: str, alias: str) -> tuple[Backfill, Progress]:
    """Return the row and the progress of a backfill; create no row if there is none."""
    row = _recorded(name, alias)
    if row is None:
        of = takes_back(name)
        return Backfill(name=name, status=f"the reverse of {of}" if of else "not started", throttle=""), NOT_STARTED
    return row, progress(row)


def refresh(row: Backfill, rows: QuerySet[Backfill] | None = None) -> None:
    """Read the row again, from ``rows`` if given.

    Raises:
        BackfillRefused: if the row is gone.
    """
    try:
        row.refresh_from_db(using=row._state.db, from_queryset=rows)
    except Backfill.DoesNotExist:
        told = f"Somebody has taken the backfill {row} back, so it has ended. backfill run {row} would start it again."
        raise BackfillRefused(told) from None


def become(row: Backfill, status: Status, **values: Any) -> None:
    """Change the status. Waits for the lock of the row (FOR NO KEY UPDATE).

    Raises:
        BackfillRefused: if the current status does not allow that, or the row is gone.
    """
    from_those = [before for before, after in Backfill.TRANSITIONS.items() if status in after]
    if status not in {Status.PENDING, Status.RUNNING}:
        values["finished_at"] = Coalesce("finished_at", Now())  # a paused one stopped when it was paused
    rows = Backfill.objects.using(row._state.db).filter(pk=row.pk)
    changed = rows.filter(status__in=from_those).update(status=status, throttle="", **values)
    refresh(row)
    if not changed:
        may = ", ".join(sorted(Backfill.TRANSITIONS[Status(row.status)])) or "nothing else"
        raise BackfillRefused(f"{row} is {row.status} and cannot become {status}; it can become {may}.")
    alias = str(row._state.db)
    if status == Status.PENDING:
        transaction.on_commit(lambda: pending.send(Backfill, name=row.name, alias=alias), using=alias)
    elif status in {Status.PAUSED, Status.CANCELED}:
        transaction.on_commit(lambda: cancel_verification(connections[alias], row), using=alias)


# As ``become``: every worker stops after its current batch; changed rows stay changed.
pause = partial(become, status=Status.PAUSED)
cancel = partial(become, status=Status.CANCELED)


def retry(row: Backfill) -> None:
    """Start an ended backfill again with the rows that are still to do, including those set aside.

    Without a ``where`` nothing says which rows those are. So one that failed or was canceled continues where it was,
    then retries the rows set aside; one that succeeded changes all rows a second time. Locks the rows of the backfill,
    of its ranges and of what it has set aside.

    Raises:
        BackfillRefused: while it has not ended.
        UnknownBackfill: if it goes in the order of keys and the code does not declare it.
    """
    alias = row._state.db
    with _locked(row):
        if row.status == Status.PAUSED:
            raise BackfillRefused(f"{row} is paused. backfill resume {row} lets it go on.")
        is_half_done = row.status in {Status.FAILED, Status.CANCELED} and row.order == KEYS
        if is_half_done and declared(row.name).where is None:
            _go_on(row, error="")
            row.set_aside.using(alias).update(again=True)
            verification = row.ranges.using(alias).filter(sweep=row.sweep, sweep__gt=1, number=0)
            verification.update(finished_at=None, leased_until=None)  # a worker then retries those
            return
        fresh = {"sweep": 0, "error": "", "verified_at": None, "finished_at": None, "started_at": None, "order": ""}
        become(row, Status.PENDING, **fresh)
        row.ranges.using(alias).delete()
        row.set_aside.using(alias).delete()


def resume(row: Backfill) -> None:
    """Let a paused backfill continue where it was. Locks its row (FOR NO KEY UPDATE).

    Raises:
        BackfillRefused: if it is not paused.
    """
    with _locked(row):
        if row.status != Status.PAUSED:
            raise BackfillRefused(f"{row} is {row.status}, not paused.")
        _go_on(row)


@contextmanager
def _locked(row: Backfill) -> Iterator[None]:
    """Read and lock the row (FOR NO KEY UPDATE) until the block commits."""
    alias = row._state.db
    with transaction.atomic(using=alias):
        refresh(row, Backfill.objects.using(alias).select_for_update(no_key=True))
        yield


def _go_on(row: Backfill, **values: Any) -> None:
    """Let it continue where it was. Its start moves by the idle time, which its rate does not count."""
    idle = Now() - Coalesce("finished_at", Now())
    become(row, Status.PENDING, started_at=F("started_at") + idle, finished_at=None, **values)


ACTIONS: dict[str, Callable[[Backfill], None]] = {"pause": pause, "resume": resume, "cancel": cancel, "retry": retry}


def apply(row: Backfill, action: str, who: str, *, all_again: bool = True) -> None:
    """Carry out one of the ``ACTIONS`` and record who did. Locks the row of the backfill, then what the action locks.

    Args:
        all_again: whether ``retry`` may change rows a second time where nothing says which are done.

    Raises:
        BackfillRefused: if the status does not allow the action.
        UnknownBackfill: as ``retry`` does.
    """
    with _locked(row):
        has_done_all = row.status == Status.SUCCEEDED and row.order == KEYS
        if action == "retry" and not all_again and has_done_all and declared(row.name).where is None:
            raise BackfillRefused(
                f"{row} has no where that says which rows are done, so retry would do each of them a second time. "
                f"If that is meant: backfill retry {row}"
            )
        ACTIONS[action](row)
        BackfillEvent.objects.using(row._state.db).create(backfill=row, action=action, who=who)


def by_whom(row: Backfill) -> str:
    """Say who paused or canceled it, and when; nothing if it is neither, or nobody recorded that."""
    last = row.events.using(row._state.db).first()
    stopped = {"pause": Status.PAUSED, "cancel": Status.CANCELED}
    return f" ({last})" if last and stopped.get(last.action) == row.status else ""


def again(row: Backfill) -> str:
    """Return the action that makes a stopped backfill pending."""
    return "resume" if row.status == Status.PAUSED else "retry"


def actions(row: Backfill) -> list[str]:
    """Return the ``ACTIONS`` that its status allows."""
    to = {Status.PAUSED: "pause", Status.PENDING: again(row), Status.CANCELED: "cancel"}
    return [action for status, action in to.items() if status in Backfill.TRANSITIONS[Status(row.status)]]


def forget(name: str, alias: str) -> None:
    """Delete the rows of a backfill, so that it can start again from nothing.

    Locks its row (FOR UPDATE), then its rows in the other tables of backfills; waits for running batches.
    """
    rows = Backfill.objects.using(alias).filter(name=name)
    with transaction.atomic(using=alias):
        list(rows.select_for_update())
        rows.delete()


def progress(row: Backfill) -> Progress:
    """Return how far the backfill is; ``remaining`` is an estimate from its first sweep, or None."""
    return progress_of([row])[row.pk]


def progress_of(rows: Sequence[Backfill]) -> dict[int, Progress]:
    """Return the progress of each by its primary key, in two queries. All must be in the same database."""
    if not rows:
        return {}
    alias = rows[0]._state.db
    here = Q(sweep=F("backfill__sweep"))
    ranges = BackfillRange.objects.using(alias).filter(backfill__in=rows).values("backfill", "backfill__sweep")
    told = ranges.annotate(
        rows=Sum("rows_done"),
        all_batches=Sum("batches"),
        longest=Max("longest_batch"),
        done=Avg("share", filter=here & Q(number__gt=0)),
        workers=Count("worker", filter=here & AT_WORK, distinct=True),
        now=Max(Now()),  # started_at is from the server's clock, too
    )
    of: dict[int, Any] = {each["backfill"]: each for each in told}
    counts = SetAside.objects.using(alias).filter(backfill__in=rows).values_list("backfill").annotate(Count("pk"))
    set_aside = dict(counts)
    return {row.pk: _progress(row, of.get(row.pk, {}), set_aside.get(row.pk, 0)) for row in rows}


def _progress(row: Backfill, told: dict[str, Any], set_aside: int) -> Progress:
    ended: datetime | None = row.finished_at or told.get("now") or row.started_at
    seconds = (ended - row.started_at).total_seconds() if ended and row.started_at else 0.0
    is_done, sweep, done = row.status == Status.SUCCEEDED, told.get("backfill__sweep", row.sweep), told.get("done")
    # A later sweep without ranges verifies what the sweep before, which is complete, has left.
    share = 1.0 if is_done or (done is None and sweep > 1) else done or 0.0
    first = sweep == 1 and share > 0 and row.status == Status.RUNNING
    return Progress(
        share=share,
        rows=told.get("rows", 0),
        batches=told.get("all_batches", 0),
        longest_batch=told.get("longest", 0.0),
        workers=told.get("workers", 0),
        set_aside=set_aside,
        seconds=seconds,
        remaining=0.0 if is_done else seconds * (1 - share) / share if first else None,
    )
