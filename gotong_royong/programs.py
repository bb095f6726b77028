"""How are PostgreSQL's own programs run, wherever they stand? No shell reads a path."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


@contextmanager
def plain(programs: Path) -> Iterator[Path]:
    """Copy the programs if their path would mean something to the shell by which initdb starts the others."""
    if not set(str(programs)) & set('"$`\\'):
        yield programs
        return
    above = programs.parent.parent  # the wheel, with whose libraries they are linked
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for part in [programs.parent, *above.parent.glob(f"{above.name}.libs")]:
            shutil.copytree(part, Path(folder) / part.relative_to(above.parent), symlinks=True)
        yield Path(folder) / programs.relative_to(above.parent)


def begin(command: list[Any], owner: tuple[int, int] | None, log: Path | None = None) -> "subprocess.Popen[str]":
    """Begin a program, as the owner of the data folder and out of reach of Ctrl-C; its output is a pipe or the log."""
    as_owner: dict[str, Any] = {}
    if owner and os.geteuid() == 0:
        as_owner = {"user": owner[0], "group": owner[1], "extra_groups": []}
    with log.open("ab") if log else nullcontext(subprocess.PIPE) as output:
        if log and owner:
            os.chown(log, *owner)
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            errors="replace",
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
            umask=0o077,
            **as_owner,
        )


def last_words(text: str) -> str:
    """Why a program or server failed: the last error it wrote, or that the disk is full, of which others follow."""
    errors = re.findall(r"(?:FATAL|PANIC|ERROR|error): .*", text)
    full = [error for error in errors if "No space left" in error]
    return " ".join((full or errors or [text])[-1].split())
