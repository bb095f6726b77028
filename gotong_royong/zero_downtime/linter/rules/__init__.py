"""What is wrong with a migration? The rules, by what they protect.

``locks`` and ``transactions``: users who wait. ``running_code``: what it uses. ``undo``: the way back. ``advice`` and
``shape``: those who come later.
"""

from . import advice, locks, running_code, shape, transactions, undo

__all__ = ["advice", "locks", "running_code", "shape", "transactions", "undo"]
