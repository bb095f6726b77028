"""What may stand in a migration beside Django's own operations; migration files import it from here."""

from gotong_royong.zero_downtime.operations.waivers import IgnoreRules

__all__ = ["IgnoreRules"]

# A migration file names an operation by its module, which is to be this one wherever the class stands.
IgnoreRules.__module__ = __name__
