"""How does every command of the engine end: with one sentence and an exit code, also where nobody reads its output?"""

import errno
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.core.management.base import OutputWrapper

from ..running.diagnosis import sentence

UNWRITTEN = {
    errno.EPIPE: "Nobody reads what it writes any more, so it stopped.",
    errno.ENOSPC: "There is no room on the device for what it writes, so it stopped.",
}


class ZeroDowntimeCommand(BaseCommand):
    """A command that ends with one sentence and a non-zero exit, where others end with a traceback.

    That is for the command line, unless it says --traceback; whoever calls the command from Python gets the error.
    """

    goes_on_unread = False
    """Whether it goes on to its end where nobody reads what it writes any more."""
    _called_from_command_line: bool  # Django's

    def run_from_argv(self, argv: list[str]) -> None:
        for name in ("stdout", "stderr"):
            if (stream := getattr(sys, name)) is None:  # closed by who started the process
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
            elif self.goes_on_unread:
                setattr(sys, name, _unread(stream))
        self.stdout, self.stderr = OutputWrapper(sys.stdout), OutputWrapper(sys.stderr)
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> Any:
        try:
            refuse_empty(args, options)
            result = super().execute(*args, **options)
            if self._called_from_command_line:
                self.stdout.flush()
            return result  # noqa: TRY300
        except CommandError as error:
            if "migration match" in str(error):
                error.args = (f"{error} showmigrations {options['app_label']} lists them.",)
            raise
        except KeyboardInterrupt as error:
            if not self._called_from_command_line or options["traceback"]:
                raise
            self.stderr.write(f"\n{str(error) or 'Stopped by Ctrl-C or SIGTERM.'}")
            sys.exit(130)
        except OSError as error:
            said = UNWRITTEN.get(error.errno or 0)
            if not said or not self._called_from_command_line or options["traceback"]:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be written at exit
            raise CommandError(said) from error
        except Exception as error:
            if self._called_from_command_line and (said := sentence(error)):
                raise CommandError(said) from error
            raise


class _Unread(io.FileIO):
    """Takes what nobody reads, and what finds no room, for written."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def _unread(stream: Any) -> Any:
    """Return a stream to the same file that raises nothing when nobody reads it, or when it cannot show it all."""
    try:
        raw = _Unread(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # it is no file
        return stream
    how: dict[str, Any] = {"errors": "backslashreplace", "line_buffering": stream.isatty() or stream is sys.stderr}
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, **how)


def refuse_empty(args: Iterable[Any], options: dict[str, Any]) -> None:
    """Make sure that nothing is empty that a command is told: a variable that is not set is not taken for left out.

    Raises:
        CommandError: names the argument or the option.
    """
    for name, value in {"args": args, **options}.items():
        is_list = isinstance(value, list | tuple)
        if name not in {"settings", "pythonpath"} and "" in (value if is_list else [value]):  # those are Django's
            what = "An argument" if name == "args" else f"The argument {name}"
            raise CommandError(f"{what} is empty, as where a shell's variable is not set. Nothing was done.")
