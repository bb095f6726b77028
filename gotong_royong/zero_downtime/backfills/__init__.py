"""How do data change over millions of rows while people use them? An app says what in its ``backfills.py``.

The rooms inside, in the order in which they may import one another:

- ``declarations``: what an app writes.
- ``ranges``: the parts of a table, and how one worker at a time holds one of them.
- ``statements``: which rows a batch has, and how they are changed.
- ``control``: starting, pausing and canceling, and what can be seen of it.
- ``throttle``: what the database says about going slower. ``sizes``: of how many rows a batch is.
- ``changes``: which rows of a batch cannot be changed. ``batches``: each is one transaction.
- ``worker``: goes through the ranges until nothing is left to do. ``pool``: several of them in one process.
- ``inline``: what a migration does with a backfill.
"""

from .declarations import BackfillDeclaration

__all__ = ["BackfillDeclaration"]
