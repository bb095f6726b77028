"""Which operations does the engine add to Django's? Migration files import them from here."""

from .backfills import FillField, RequireBackfill, RunBackfill
from .python import repeatable
from .waivers import IgnoreRules

__all__ = ["FillField", "IgnoreRules", "RequireBackfill", "RunBackfill", "repeatable"]

# The writer of migration files imports an operation from its ``__module__``.
FillField.__module__ = IgnoreRules.__module__ = RequireBackfill.__module__ = RunBackfill.__module__ = __name__
