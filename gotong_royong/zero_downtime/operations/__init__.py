"""What may stand in a migration beside Django's own operations? Migration files import it from here."""

from .backfills import RequireBackfill, RunBackfill
from .python import repeatable
from .waivers import IgnoreRules

__all__ = ["IgnoreRules", "RequireBackfill", "RunBackfill", "repeatable"]

# A migration file names an operation by its module, which is to be this one wherever the class stands.
IgnoreRules.__module__ = RequireBackfill.__module__ = RunBackfill.__module__ = __name__
