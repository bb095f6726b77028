"""How do several workers of one process go through a backfill together?"""

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress

from django.db import Error, InterfaceError, OperationalError, connections

from ..models import Backfill
from ..postgres import locks
from . import control
from .control import Progress
from .throttle import BACKFILL
from .worker import Worker

SHOW_EVERY = 0.25  # seconds


def run(
    name: str,
    alias: str,
    *,
    workers: int = 1,
    at_full_speed: bool = False,
    show: Callable[[Backfill, Progress], object] = lambda row, progress: None,
) -> Backfill:
    """Go through the backfill with workers, each in a thread with its own connection; return its row at the end.

    After Ctrl-C each worker finishes its current batch; a statement that verifies is canceled.

    Args:
        show: takes the row and its progress four times a second.

    Raises:
        BackfillFailed: if it cannot go on.
        BackfillRefused: if somebody has taken it back meanwhile.
    """
    row = control.get_or_create(name, alias)
    stop = threading.Event()
    errors: list[BaseException] = []
    at_work: list[Worker] = []

    def work() -> None:
        try:
            at_work.append(Worker(control.known(name, alias), stop=stop.is_set, at_full_speed=at_full_speed))
            at_work[-1].run()
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)
            stop.set()
        finally:
            connections[alias].close()

    threads = [threading.Thread(target=work, name=f"backfill {number}") for number in range(workers)]
    settings = ExitStack()
    settings.enter_context(locks.session_settings(connections[alias], application_name=BACKFILL))
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[-1].join(SHOW_EVERY)
            try:
                control.refresh(row)
                show(row, control.progress(row))
            except (InterfaceError, OperationalError):  # the workers raise this after PATIENCE
                connections[alias].close()
    finally:
        stop.set()
        while any(thread.is_alive() for thread in threads):
            for worker in at_work:
                worker.cancel_verification()
            threads[-1].join(SHOW_EVERY)
        settings.close()
    if errors:
        with suppress(Error):
            control.refresh(row)  # raises BackfillRefused if it was taken back, in place of the worker's error
        raise errors[0]
    control.refresh(row)
    return row
