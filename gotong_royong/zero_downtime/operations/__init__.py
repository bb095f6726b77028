"""What may stand in a migration beside Django's own operations; migration files import it from here."""

from gotong_royong.zero_downtime.operations.backfills import RequireBackfill, RunBackfill

__all__ = ["RequireBackfill", "RunBackfill"]

# A migration file names an operation by its module, which is to be this one wherever the class stands.
RequireBackfill.__module__ = RunBackfill.__module__ = __name__
