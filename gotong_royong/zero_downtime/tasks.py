"""How do backfills get to the workers of a queue? Through Procrastinate: ``manage.py procrastinate worker``.

This is the only room that knows the queue, which finds it by its name. What is to be done stands in the tables of
backfills: a task is a nudge to look there, and one that gets lost is made up for within ten minutes.
"""

import logging
import time
from typing import Any

from django.db import DEFAULT_DB_ALIAS, Error, connections
from procrastinate import JobContext
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

from .backfills import control
from .backfills.ranges import worker_name
from .backfills.worker import Worker
from .conf import conf
from .exceptions import ZeroDowntimeError, summary
from .models import Backfill

logger = logging.getLogger(__name__)
SLICE = 20.0  # seconds that a job works on a backfill; a deploy gives a process 30 to end
OPEN = {Backfill.Status.PENDING, Backfill.Status.RUNNING}


@app.task(name="zero_downtime.work_on_backfill", pass_context=True)
def work_on_backfill(context: JobContext, name: str, alias: str = DEFAULT_DB_ALIAS) -> None:
    """Go through a backfill for a slice of time, together with whoever else is at it, and ask for the next slice.

    So a worker that is to stop does, and other jobs get their turn. Asks another worker to help, and leaves it alone
    where enough are at it, or nobody has started it. A look for what is left takes the time that it needs.
    """
    until = time.monotonic() + SLICE

    def is_over() -> bool:
        return time.monotonic() > until and not worker.looks

    try:
        row = control.known(name, alias)
        others = control.progress(row).workers
        if row.status in OPEN and others < conf.BACKFILL_WORKERS:
            worker = Worker(row, stop=lambda: is_over() or context.should_abort())
            if others + 1 < conf.BACKFILL_WORKERS:
                nudge(name=name, alias=alias)
            if worker.run().status in OPEN:
                nudge(name=name, alias=alias)
    except ZeroDowntimeError as error:  # of one that failed it is written down; others wait for newer code, or a mend
        Backfill.objects.using(alias).filter(name=name, status__in=OPEN).update(throttle=f"{worker_name()}: {error}")
        logger.warning("%s", error)
    finally:
        connections[alias].close()


@app.periodic(cron="*/10 * * * *")
@app.task(name="zero_downtime.look_for_backfills", queueing_lock="zero_downtime.look_for_backfills")
def look_for_backfills(timestamp: int) -> None:
    """Take up what nobody is at, in any database: a backfill whose task got lost, or whose worker died."""
    for alias in connections:
        try:
            if control.is_recorded(alias) and _takes_writes(alias):
                for row in Backfill.objects.using(alias).filter(status__in=OPEN):
                    if not control.progress(row).workers:
                        nudge(name=row.name, alias=alias)
        except Error as error:  # the others are to be looked at nevertheless
            logger.warning("The backfills of database %s cannot be looked at: %s", alias, summary(error))
        finally:
            connections[alias].close()


def _takes_writes(alias: str) -> bool:
    """Whether the database is more than a replica of another one, which knows the same backfills."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return bool(cursor.fetchone()[0] == "off")


def nudge(*, name: str, alias: str, **_: Any) -> None:
    """Ask a worker to take up a backfill. One is asked at a time; where the queue has no tables, nobody is."""
    try:
        work_on_backfill.configure(queueing_lock=f"{alias}:{name}").defer(name=name, alias=alias)
    except AlreadyEnqueued:
        pass
    except ConnectorException as error:
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        told = "%s waits for backfill run %s: the queue cannot be reached (%s). Run migrate if it has no tables yet."
        logger.warning(told, name, name, why)


control.pending.connect(nudge, dispatch_uid="zero_downtime.nudge")
