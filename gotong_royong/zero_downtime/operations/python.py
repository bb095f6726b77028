"""What can be said of the functions that RunPython calls?"""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def repeatable(function: Function) -> Function:
    """Say of a function for ``RunPython`` that it may run again, whatever it has committed before: a decorator.

    In a migration that is not atomic, ``migrate`` then tries it again when it had to let others pass, instead of ending
    the run.
    """
    vars(function)["repeatable"] = True
    return function
