"""How do the engine's commands end? With one sentence and an exit code, even if nobody reads their output."""

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
    errno.EPIPE: "Nobody reads its output any more, so it stopped.",
    errno.ENOSPC: "The device of its output is full, so it stopped.",
}


class ZeroDowntimeCommand(BaseCommand):
    """A command that ends an error with one sentence and a non-zero exit status.

    It does so only on the command line without --traceback. A caller in Python gets the exception.
    """

    goes_on_unread = False
    """Whether it continues if nobody reads its output any more."""
    _called_from_command_line: bool  # Django's

    def run_from_argv(self, argv: list[str]) -> None:
        for name in ("stdout", "stderr"):
            if (stream := getattr(sys, name)) is None:  # the parent process closed it
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at exit
            raise CommandError(said) from error
        except Exception as error:
            if self._called_from_command_line and (said := sentence(error)):
                raise CommandError(said) from error
            raise


class _Unread(io.FileIO):
    """Ignores the errors of writing: nobody reads the output, or its device is full."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def _unread(stream: Any) -> Any:
    """Return a stream to the same file that ignores the errors of writing and escapes what it cannot encode."""
    try:
        raw = _Unread(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # not a file
        return stream
    how: dict[str, Any] = {"errors": "backslashreplace", "line_buffering": stream.isatty() or stream is sys.stderr}
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, **how)


def refuse_empty(args: Iterable[Any], options: dict[str, Any]) -> None:
    """Refuse empty arguments and options: an unset shell variable must not count as an option that was left out.

    Raises:
        CommandError: names the argument or the option.
    """
    for name, value in {"args": args, **options}.items():
        is_list = isinstance(value, list | tuple)
        if name not in {"settings", "pythonpath"} and "" in (value if is_list else [value]):  # Django's allow that
            what = "An argument" if name == "args" else f"The argument {name}"
            raise CommandError(f"{what} is empty, as with an unset shell variable. Nothing was done.")
