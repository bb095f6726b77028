"""What does a migration lock, scan, rewrite and break? The linter runs it in a scratch database and judges what it did.

- ``facts``: what is known about a migration. ``code``: which tables do its models name? ``names``: in SQL and Python.
- ``registry``: which rules are there? ``sizes``: how large are the real tables?
- ``queries``: what PostgreSQL is asked. ``observer``: what does each statement do? ``lock_probe``: what does one lock
  that may run in no transaction?
- ``sandbox``: what is a migration kept from? ``failures``: why did it end early?
- ``rows``: made-up rows. ``reached``: which lines changed rows? ``earlier_runs``: content types and permissions.
- ``differences``: between models and tables. ``server`` and ``scratch``: where does a migration run?
- ``runner``: runs one migration up and down. ``trace``: runs a plan. ``selection``: which migrations?
- ``apart``: in a process of its own. ``reports``: text, JSON, GitHub, SARIF, RULES.md.
- ``rules``: the texts of the rules and their judges. ``judgement``: which rules does each migration break?
"""

from . import rules
from .facts import Trace
from .judgement import judge, lint
from .registry import RULES, Violation

__all__ = ["RULES", "Trace", "Violation", "judge", "lint", "rules"]
