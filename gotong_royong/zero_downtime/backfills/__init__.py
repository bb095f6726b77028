"""How does a data change go through millions of rows while people use them?

An app declares it in its ``backfills.py``.

The rooms inside, in the order in which they may import one another:

- ``declarations``: what an app writes.
- ``ranges``: the parts of a table, and the lease by which one worker holds a part.
- ``statements``: which rows a batch has, and the SQL that changes them.
- ``control``: starting, pausing and canceling, and the progress.
- ``throttle``: reasons to go slower. ``sizes``: the number of rows of a batch.
- ``changes``: the rows of a batch that fail. ``batches``: each is one transaction.
- ``verification``: whether rows are left to do.
- ``worker``: goes through the ranges until none are left. ``pool``: several workers in one process.
- ``inline``: what a migration does with a backfill.
"""

from .declarations import BackfillDeclaration

__all__ = ["BackfillDeclaration"]
