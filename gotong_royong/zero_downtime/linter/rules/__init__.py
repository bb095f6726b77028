"""What is wrong with a migration? The rules, by what they protect: the text of each in TOML, and its judge in Python.

``locks`` and ``transactions``: users who wait. ``running_code``: what it uses. ``undo``: the way back. ``advice`` and
``shape``: those who come later.
"""

from pathlib import Path

from ..registry import RULES, read
from . import advice, locks, running_code, shape, transactions, undo

__all__ = ["advice", "locks", "running_code", "shape", "transactions", "undo"]

RULES |= read(Path(__file__).parent)
