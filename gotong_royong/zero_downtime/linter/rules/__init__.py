"""The rules, by what they protect: users who wait, code that runs, the way back, and those who come later."""

from gotong_royong.zero_downtime.linter.rules import advice, locks, running_code, shape, transactions, undo

__all__ = ["advice", "locks", "running_code", "shape", "transactions", "undo"]
