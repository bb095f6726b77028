"""How the data migrations of this app walk a table: in slices by primary key, each committed on its own."""

import time
from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

SECONDS_BETWEEN_LINES = 2


def in_batches(rows: QuerySet[Any], change: Callable[[QuerySet[Any]], object], *, size: int = 1_000) -> None:
    """Call ``change`` on one slice of ``rows`` after another and print how far it is.

    A run that is stopped keeps the slices it has committed. The next run starts from the first row that is still in
    ``rows``, so ``change`` must take a row out of it or do no harm the second time.

    Args:
        rows: what is to be done, as a queryset of a historical model with one primary-key column.
        change: gets a slice of ``rows`` inside a transaction that locks no more than that slice.
        size: rows in a slice.
    """
    total = rows.count()
    if not total:
        return
    rows = rows.order_by("pk")
    done, last_line = 0, time.monotonic()
    print()
    rest = rows
    while keys := list(rest.values_list("pk", flat=True)[:size]):
        with transaction.atomic(using=rows.db):
            change(rows.filter(pk__gte=keys[0], pk__lte=keys[-1]))
        done += len(keys)
        rest = rows.filter(pk__gt=keys[-1])
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"    {done:,} of about {total:,} rows", flush=True)
    print(f"    {done:,} rows, all done.", end="", flush=True)
