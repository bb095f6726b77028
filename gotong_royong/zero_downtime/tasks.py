"""How do backfills get to the workers of a queue? Through Procrastinate: ``manage.py procrastinate worker``.

Only this module imports Procrastinate, which finds it by its name ``tasks``. The tables of backfills hold the state; a
task only tells a worker to read them. A lost task is replaced within ten minutes.
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
SLICE = 20.0  # seconds of a job; a deploy usually gives a process 30 to end
OPEN = {Backfill.Status.PENDING, Backfill.Status.RUNNING}


@app.task(name="zero_downtime.work_on_backfill", pass_context=True)
def work_on_backfill(context: JobContext, name: str, alias: str = DEFAULT_DB_ALIAS) -> None:
    """Work on a backfill for ``SLICE`` seconds, beside other workers, and defer the next job.

    So a worker stops soon after SIGTERM, and other jobs get their turn. It asks another worker to help while there are
    fewer than ``BACKFILL_WORKERS``, and does nothing if there are enough. A verification may take longer.
    """
    until = time.monotonic() + SLICE

    def is_over() -> bool:
        return time.monotonic() > until and not worker.verifies

    try:
        row = control.known(name, alias)
        others = control.progress(row).workers
        if row.status in OPEN and others < conf.BACKFILL_WORKERS:
            worker = Worker(row, stop=lambda: is_over() or context.should_abort())
            if others + 1 < conf.BACKFILL_WORKERS:
                nudge(name=name, alias=alias)
            if worker.run().status in OPEN:
                nudge(name=name, alias=alias)
    except ZeroDowntimeError as error:  # a failed one has its error; others wait for newer code
        Backfill.objects.using(alias).filter(name=name, status__in=OPEN).update(throttle=f"{worker_name()}: {error}")
        logger.warning("%s", error)
    finally:
        connections[alias].close()


@app.periodic(cron="*/10 * * * *")
@app.task(name="zero_downtime.look_for_backfills", queueing_lock="zero_downtime.look_for_backfills")
def look_for_backfills(timestamp: int) -> None:
    """Defer a job for each open backfill without a worker: its job or worker is lost."""
    for alias in connections:
        try:
            if control.is_recorded(alias) and _takes_writes(alias):
                for row in Backfill.objects.using(alias).filter(status__in=OPEN):
                    if not control.progress(row).workers:
                        nudge(name=row.name, alias=alias)
        except Error as error:  # the other databases get their turn
            logger.warning("The backfills of database %s cannot be read: %s", alias, summary(error))
        finally:
            connections[alias].close()


def _takes_writes(alias: str) -> bool:
    """Whether the database takes writes: a replica shows the backfills of its primary."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return bool(cursor.fetchone()[0] == "off")


def nudge(*, name: str, alias: str, **_: Any) -> None:
    """Defer a job for a backfill unless one waits already. Without tables of the queue, only log that."""
    try:
        work_on_backfill.configure(queueing_lock=f"{alias}:{name}").defer(name=name, alias=alias)
    except AlreadyEnqueued:
        pass
    except ConnectorException as error:
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        told = "%s waits for backfill run %s: the queue cannot be reached (%s). Run migrate if it has no tables yet."
        logger.warning(told, name, name, why)


control.pending.connect(nudge, dispatch_uid="zero_downtime.nudge")
