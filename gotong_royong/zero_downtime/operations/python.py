"""How does a migration mark a function of RunPython as repeatable?"""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def repeatable(function: Function) -> Function:
    """Mark a function for ``RunPython`` that may run again, whatever it has committed before (a decorator).

    In a migration that is not atomic, ``migrate`` then retries it after an interruption instead of ending the run.
    """
    vars(function)["repeatable"] = True
    return function
