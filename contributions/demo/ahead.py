"""How are rows drawn while the server stores those before? In a process of its own, a neighborhood ahead.

A thread would not do: it and the one that feeds the server would wait for each other's lock. The process does without
Django, and ends when nobody reads its pipe any more, however the reader came to its end.
"""

import signal
from collections.abc import Generator
from contextlib import suppress
from multiprocessing import get_context, resource_tracker
from typing import TYPE_CHECKING

from contributions.demo import Demo

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WORTH_A_PROCESS = 10  # neighborhoods


def drawn(demo: Demo) -> Generator[dict[str, bytes], None, None]:
    """Yield the rows of each neighborhood; another process draws the next ones meanwhile."""
    if len(demo.neighborhoods) < WORTH_A_PROCESS:
        yield from map(demo.text, demo.neighborhoods)
        return
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_draw, args=(demo, writer), daemon=True)
    resource_tracker.ensure_running()  # else it starts with the process, and changes the mask
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C goes to both processes; the parent handles it
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    writer.close()
    try:
        for _ in demo.neighborhoods:
            yield reader.recv()
    except EOFError:
        raise ChildProcessError("the process that draws the rows ended too early") from None
    finally:
        reader.close()
        process.join()


def _draw(demo: Demo, writer: "Connection[dict[str, bytes], None]") -> None:
    with suppress(BrokenPipeError):  # the other process has ended or stopped reading
        for neighborhood in demo.neighborhoods:
            writer.send(demo.text(neighborhood))
