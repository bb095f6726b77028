"""Why did a migration end early: by its own fault, or because of the server that it runs on?"""

import re
from types import ModuleType
from typing import Any

from ..exceptions import in_full
from ..postgres.locks import sqlstate
from .facts import Failure
from .observer import OutOfBounds
from .sandbox import NetworkRefused, TooLong

# What the scratch server lacks and another may have: a file, a permission, a connection; an extension, a role.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
ENVIRONMENT = {"58P01", "42501", "08001", "08006"}
MISSING, MISSING_WHAT = {"0A000", "42704", "22023"}, re.compile(r"\b(extension|role)\b")

OUT_OF_BOUNDS = (
    "It changes a role, a database or something else that all databases of the server share, so it was stopped: the "
    "linter changes nothing outside of its scratch database. Change that where servers are set up."
)


def failure_of(error: BaseException, operation: int, limit: float) -> Failure:
    """Say why the operation ended early.

    Args:
        limit: seconds after which it was stopped, if it was.
    """
    code = sqlstate(error)
    if isinstance(error, TooLong) or code == "57014":
        stopped = f"It was stopped after {limit:g} s, though it ran on tables without rows."
        return Failure(operation, stopped, environment=True)
    if isinstance(error, OutOfBounds):
        return Failure(operation, OUT_OF_BOUNDS, environment=True)
    missing = code in MISSING and MISSING_WHAT.search(str(error)) is not None
    environment = missing or code in ENVIRONMENT or _is_because_of(error, NetworkRefused)
    return Failure(operation, in_full(error), environment)


def _is_because_of(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether the error is of this kind, or has such an error as its cause, its context or an argument."""
    known: dict[int, BaseException] = {}
    found: list[Any] = [error]
    while found:
        one = found.pop()
        if isinstance(one, BaseException) and id(one) not in known:
            known[id(one)] = one
            found += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
            found += getattr(one, "exceptions", ())
    return any(isinstance(one, kind) for one in known.values())


def is_of_the_code(error: BaseException) -> bool:
    """Whether code fails on any row: it names what does not exist, or what a historical model lacks."""
    if isinstance(error, AttributeError):
        return type(error.obj).__module__ == "__fake__" or isinstance(error.obj, ModuleType)
    return isinstance(error, NameError | ImportError)
