"""How does a run show what it does: in lines, live in a terminal, or as JSON?

A reporter is called with an event and its facts, also by the watchdog's thread, and is a context manager around all
that a command prints. It never raises: it escapes what the stream cannot encode, and drops output once the stream is
closed.
"""

import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from datetime import UTC, datetime
from textwrap import indent
from typing import TYPE_CHECKING, Any, Self

from django.core.management.base import BaseCommand, OutputWrapper

from ..backfills.control import AT_WORK, Progress
from ..exceptions import counted
from ..models import Backfill
from ..postgres.statements import Statement

if TYPE_CHECKING:
    from rich.console import Group

    from .plan import PlannedStep

LONG = 1.0  # seconds that a step may last without a word
BLOCKED = 0.1  # seconds that others may wait without a word
FIRST_PROGRESS, LONGEST_SILENCE = 2.0, 60.0  # seconds between two lines about the same statement
ALL = 2  # the verbosity at which each step says how long it took


def is_terminal(command: BaseCommand) -> bool:
    """Whether the command prints to a terminal that can redraw lines."""
    return command.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}


class Plain:
    """Prints lines as Django does, and more when something takes long. Each event is the method of its name.

    A method ignores the facts that it does not name.
    """

    def __init__(self, command: BaseCommand, verbosity: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.command, self.verbosity, self.clock = command, verbosity, clock
        self._lock = threading.Lock()
        self._step = ""
        self._faked = self._line_is_open = False
        self._sql, self._silence, self._due = "", 0.0, 0.0

    def __call__(self, event: str, **facts: Any) -> None:
        show = getattr(self, event)
        with self._lock, suppress(Exception):
            show(**facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(Exception):
            self._close_line()

    def waiting(self, whom: str, **_: Any) -> None:
        """Another run is at work."""
        self._print(f"Waiting for {whom}.")

    def note(self, text: str, **_: Any) -> None:
        self._print(text)

    def nothing_to_do(self, **_: Any) -> None:
        """There is no step to do, and so no run; the command prints that."""

    def run_started(self, run: int, command: str, steps: int, **_: Any) -> None:
        """A run with steps to do begins."""

    def step_started(self, app: str, name: str, direction: str, faked: bool, **_: Any) -> None:
        self._step = f"{'Applying' if direction == 'up' else 'Unapplying'} {app}.{name}"
        self._faked, self._sql = faked, ""
        self._begin_step()

    def retry(self, attempt: int, pause: float, whom: str, **_: Any) -> None:
        """A try got no lock; the next one comes after the pause, in seconds."""
        if attempt in {3, 5} or attempt % 10 == 0:
            self._print(f"    {_tried(attempt, pause, whom)}")

    def progress(self, sql: str, phase: str, percent: int | None, whom: str, **_: Any) -> None:
        """A statement lasts; printed after 2, 4, 8 … seconds more."""
        now = self.clock()
        if sql != self._sql:
            self._sql, self._silence = sql, FIRST_PROGRESS
            self._due = now + self._silence
        elif now >= self._due:
            self._silence = min(2 * self._silence, LONGEST_SILENCE)
            self._due = now + self._silence
            self._print(f"    {_on_its_way(phase, percent, whom)}: {_one_line(sql)}")

    def step_finished(self, status: str, **facts: Any) -> None:
        self._end_step(self._outcome(status), _remarks(facts, always=self.verbosity >= ALL))

    def run_finished(self, run: int, status: str, seconds: float, steps: int, error: str, **_: Any) -> None:
        """A run has ended; the command itself prints the error."""
        self._print(f"Run {run} {_words(status)}: {counted(steps, 'step')} in {duration(seconds)}.")

    def _outcome(self, status: str) -> str:
        if status != "succeeded":
            return self.command.style.ERROR(_words(status).upper())
        return self.command.style.SUCCESS("FAKED" if self._faked else "OK")

    def _begin_step(self) -> None:
        if self.verbosity:
            self.command.stdout.write(f"  {self._step}...", ending="")
            self.command.stdout.flush()
            self._line_is_open = True

    def _end_step(self, outcome: str, remarks: str) -> None:
        if self.verbosity:
            self.command.stdout.write(f"{' ' if self._line_is_open else '    '}{outcome}{remarks}")
            self._line_is_open = False

    def _print(self, line: str) -> None:
        """Print a line and flush it, so that the reader of a pipe sees it at once."""
        if self.verbosity:
            self._close_line()
            self.command.stdout.write(line)
            self.command.stdout.flush()

    def _close_line(self) -> None:
        if self._line_is_open:
            self._line_is_open = False
            self.command.stdout.write()


class WholeLines(OutputWrapper):
    """Does not flush, as Django does in the middle of a line: the foot of the terminal needs whole lines."""

    def flush(self) -> None:
        pass


class Live(Plain):
    """Shows the progress of the run at the foot of the terminal, and above it the finished steps."""

    def __init__(self, command: BaseCommand, verbosity: int = 1, *, no_color: bool = False) -> None:
        super().__init__(command, verbosity)
        self.no_color = no_color
        self._done = self._of = 0
        self._since = self._step_since = 0.0
        self._what, self._why = "", ""
        self._display = ExitStack()

    def __exit__(self, *exception: object) -> None:
        with suppress(Exception):
            self._display.close()
        super().__exit__(*exception)

    def run_started(self, run: int, command: str, steps: int, **_: Any) -> None:
        from rich.console import Console
        from rich.live import Live as Region

        self._done, self._of, self._since = 0, steps, self.clock()
        screen = Console(file=vars(self.command.stdout)["_out"], no_color=self.no_color or None, highlight=False)
        region = Region(console=screen, get_renderable=self.foot, refresh_per_second=8, transient=True)
        self._display.enter_context(region)
        # Meanwhile, all output must go through the region.
        before, self.command.stdout = self.command.stdout, WholeLines(sys.stdout)
        self._display.callback(setattr, self.command, "stdout", before)

    def step_started(self, app: str, name: str, direction: str, faked: bool, **facts: Any) -> None:
        self._done, self._of = facts["number"] - 1, facts["of"]
        self._step_since, self._what, self._why = self.clock(), "", ""
        super().step_started(app, name, direction, faked)

    def retry(self, attempt: int, pause: float, whom: str, **_: Any) -> None:
        self._why = _tried(attempt, pause, whom)

    def progress(self, sql: str, phase: str, percent: int | None, whom: str, **_: Any) -> None:
        self._what, self._why = _one_line(sql), _on_its_way(phase, percent, whom)

    def step_finished(self, status: str, **facts: Any) -> None:
        self._done += 1
        super().step_finished(status, **facts)
        self._step = self._what = self._why = ""

    def run_finished(self, run: int, status: str, seconds: float, steps: int, error: str, **_: Any) -> None:
        self._display.close()
        super().run_finished(run, status, seconds, steps, error)

    def foot(self) -> "Group":
        """Return the foot of the terminal."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self.clock()
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=max(self._of, 1), completed=self._done, width=30),
            f"{self._done} of {self._of} steps, {duration(now - self._since)}",
        )
        lines = [f"  {self._step}... {duration(now - self._step_since)}"] if self._step else []
        lines += [f"    {line}" for line in (self._what, self._why) if line]
        return Group(head, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    def _begin_step(self) -> None:
        """Print nothing: the foot shows the step until it ends."""

    def _end_step(self, outcome: str, remarks: str) -> None:
        self._print(f"  {self._step}... {outcome}{remarks}")


class Json:
    """Prints one object a line; all other output, such as a migration's own, goes to stderr."""

    def __init__(self, command: BaseCommand) -> None:
        self.command, self.out = command, command.stdout
        self._lock = threading.Lock()
        self._elsewhere = ExitStack()

    def __enter__(self) -> Self:
        self.command.stdout = OutputWrapper(sys.stderr)
        self._elsewhere.callback(setattr, self.command, "stdout", self.out)
        self._elsewhere.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *exception: object) -> None:
        self._elsewhere.close()

    def __call__(self, event: str, **facts: Any) -> None:
        with self._lock, suppress(Exception):
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            self.out.write(json.dumps({"event": event, "at": at, **facts}))
            self.out.flush()


Reporter = Plain | Json
"""``Plain`` shows which events there are, and their facts."""


def reporter(command: BaseCommand, *, kind: str = "text", verbosity: int = 1, no_color: bool = False) -> Reporter:
    """Return the reporter for a command. Makes its stream escape what it cannot encode."""
    with suppress(AttributeError, OSError, ValueError):
        command.stdout.reconfigure(errors="backslashreplace")
    if kind == "json":
        return Json(command)
    if verbosity and is_terminal(command):
        return Live(command, verbosity, no_color=no_color)
    return Plain(command, verbosity)


def print_step(command: BaseCommand, verbosity: int, step: "PlannedStep", operations: list[tuple[str, bool]]) -> None:
    """Print a step of a plan: at verbosity 0 the tables it touches, at 1 also its SQL, at 2 also its operations."""
    out, style = command.stdout, command.style
    out.write(str(step), style.MIGRATE_HEADING)
    if verbosity > 1:
        for operation, is_error in operations:
            out.write(f"  {operation}", style.WARNING if is_error else None)
    if verbosity:
        for statement in step.statements or ["-- nothing to do in the database"] * (not step.faked):
            is_remark = not Statement(statement).verb
            out.write(indent(inspect.cleandoc(statement), "    "), style.WARNING if is_remark else None)
    for table in step.tables:
        out.write(f"  touches {table}", style.NOTICE)


def backfill_line(row: Backfill, progress: Progress) -> str:
    """Return the state of a backfill in one line."""
    told = [f"{row.name}: {row.status}"]
    if row.status == Backfill.Status.RUNNING:
        told[0] += f", {counted(progress.workers, 'worker')}" if progress.workers else ", but without a worker"
        told.append(f"{progress.share:.0%}" if row.sweep == 1 else f"sweep {row.sweep}, {progress.share:.0%}")
    if row.started_at:
        told.append(f"{counted(progress.rows, 'row')} in {duration(progress.seconds)} ({progress.rate:,.0f}/s)")
    if progress.remaining:
        told.append(f"about {duration(progress.remaining)} left")
    if progress.set_aside:
        told.append(f"{progress.set_aside:,} set aside")
    if row.throttle:
        told.append(f"held back: {row.throttle}")
    return ", ".join(told)


def print_backfill(command: BaseCommand, row: Backfill, progress: Progress) -> None:
    """Print all that is known of a backfill."""
    out, style = command.stdout, command.style
    out.write(backfill_line(row, progress), style.MIGRATE_HEADING)
    if not row.pk:  # not started
        return
    if row.order:
        batches = f"{progress.batches:,} batch{'es' * (progress.batches != 1)}"
        out.write(f"  order: {row.order}, {batches}, the longest {progress.longest_batch:.2f} s, sweep {row.sweep}")
    if row.verified_at:
        out.write(f"  verified: no row was left to do at {row.verified_at:%Y-%m-%d %H:%M:%S} UTC")
    if row.error:
        out.write(f"  error: {row.error}", style.ERROR)
    alias = row._state.db
    for event in row.events.using(alias)[:5]:
        out.write(f"  {event}")
    for part in row.ranges.using(alias).filter(AT_WORK).order_by("number"):
        out.write(f"  range {part.number} ({part.share:.0%}): {part.worker}")
    for aside in row.set_aside.using(alias).order_by("pk")[:20]:
        out.write(f"  set aside: {aside}", style.WARNING)
    if progress.set_aside > 20:
        out.write(f"  … and {progress.set_aside - 20:,} more")


@contextmanager
def backfill_display(command: BaseCommand, *, no_color: bool = False) -> Iterator[Callable[[Backfill, Progress], None]]:
    """Yield a function that shows the progress of a backfill: a bar in a terminal, else a line after 2, 4, 8 … s."""
    if not is_terminal(command):
        silence, due = FIRST_PROGRESS, time.monotonic() + FIRST_PROGRESS

        def say(row: Backfill, progress: Progress) -> None:
            nonlocal silence, due
            if time.monotonic() >= due:
                silence = min(2 * silence, LONGEST_SILENCE)
                due = time.monotonic() + silence
                with suppress(OSError):
                    command.stdout.write(backfill_line(row, progress))
                    command.stdout.flush()

        yield say
        return
    from rich.console import Console, Group
    from rich.live import Live as Region
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    screen = Console(file=vars(command.stdout)["_out"], no_color=no_color or None, highlight=False)
    with Region(console=screen, refresh_per_second=4, transient=True) as region:

        def show(row: Backfill, progress: Progress) -> None:
            head = Table.grid()
            head.add_row(ProgressBar(total=1.0, completed=progress.share, width=40))
            region.update(Group(head, Text(backfill_line(row, progress))))

        yield show


def duration(seconds: float) -> str:
    """Format seconds: ``2.5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _remarks(facts: dict[str, Any], *, always: bool) -> str:
    """Return how long a step took and who waited for it, if either was long."""
    remarks = []
    if always or facts["seconds"] > LONG:
        remarks.append(duration(facts["seconds"]))
    if facts["longest_blocked"] > BLOCKED:
        count = facts["blocked_sessions"]
        others = f"{count} sessions waited for it, the longest" if count > 1 else "1 session waited for it"
        remarks.append(f"{others} for {facts['longest_blocked']:.2f} s")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _tried(attempt: int, pause: float, whom: str) -> str:
    why = f": {whom}".rstrip(": .")
    return f"Try {attempt} got no lock{why}. Next in {pause:.1f} s."


def _on_its_way(phase: str, percent: int | None, whom: str) -> str:
    done = f"{phase or 'running'}{'' if percent is None else f', {percent}%'}"
    return f"{done}; waits for {whom}" if whom else done


def _one_line(sql: str) -> str:
    return " ".join(sql.split())


def _words(status: str) -> str:
    return status.replace("_", " ")
