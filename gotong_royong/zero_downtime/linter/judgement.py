"""Which rules does each migration break, without what it waives and what the settings silence?"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader

from ..exceptions import meant
from ..operations import IgnoreRules
from ..stages import Key
from .facts import Direction, Failure, Trace
from .registry import RULES, Spot, Violation, violation, violations
from .runner import LIMIT
from .scratch import Place, place, scratch
from .selection import Selection
from .trace import Failed, fill, traces

NOT_RUN = ("E301", "W401")
"""The rules that say why a migration did not run. The linter itself may fail on it in the others."""


def lint(
    connection: BaseDatabaseWrapper,
    loader: MigrationLoader,
    selection: Selection,
    *,
    limit: float = LIMIT,
    stopped: Mapping[Key, Failure] = {},
    where: Callable[[], Place] | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Iterator[tuple[Trace, list[Violation]]]:
    """Run migrations in a scratch database and yield each one under judgement with the rules that it breaks.

    Args:
        connection: the configured database, which is only read. While this runs, its alias means the scratch database.
        limit: seconds after which an operation is stopped.
        stopped: migrations that do not run, and why.
        where: returns the server. Without it, a server starts that runs for as long as this does.
        note: is told if the server is of another version than the configured one, and why.

    Raises:
        ZeroDowntimeError: if there can be no scratch database.
    """
    if not selection.judged:
        return
    is_kept = selection.one_deploy and selection.ground and stopped.keys().isdisjoint(selection.ground)
    template = selection.template(loader, connection) if is_kept else ""

    missing: Failed = {}

    def lay_ground(database: BaseDatabaseWrapper) -> str:
        return json.dumps(list(fill(database, loader, selection.ground, stopped).items()))

    def recall(said: str) -> None:
        missing.update((tuple(key), why) for key, why in json.loads(said))

    with (
        nullcontext(where()) if where else place(connection, note) as server,
        scratch(connection, server, template=template, fill=lay_ground, recall=recall) as database,
    ):
        for trace in traces(
            database,
            loader,
            selection.ground,
            selection.plan,
            selection.judged,
            one_deploy=selection.one_deploy,
            limit=limit,
            stopped=stopped,
            missing=missing,
        ):
            rules = NOT_RUN if (trace.migration.app_label, trace.migration.name) in stopped else RULES
            yield trace, judge(trace, rules, whole_history=not selection.one_deploy)


def judge(trace: Trace, rules: Iterable[str] = RULES, *, whole_history: bool = True) -> list[Violation]:
    """Return what a migration breaks, without what it waives or the settings silence.

    Args:
        rules: the rules that are asked.
        whole_history: whether a waiver that is not used here is used nowhere. A migration breaks fewer rules when it
            is deployed together with the one that makes its table.
    """
    found = violations(trace, rules)
    broken = {_waiver_of(one) for one in found}
    waivers = [operation for operation in trace.migration.operations if isinstance(operation, IgnoreRules)]
    waived = {(id, waiver.direction) for waiver in waivers for id in waiver.rules}
    silenced = settings.SILENCED_SYSTEM_CHECKS
    found = [one for one in found if _waiver_of(one) not in waived]
    unused = {
        (id, way): f"which is no rule. {meant(id, RULES, 'RULES.md has all.')}" for id, way in waived if id not in RULES
    }
    if trace.up.failure is None and whole_history:
        known = {(id, way) for id, way in waived if id in RULES}
        unused |= {(id, way): f"which this migration does not break on its way {way}." for id, way in known - broken}
    spots = [Spot(trace.up, values={"waived": id, "why": why}) for (id, _), why in sorted(unused.items())]
    found += [violation(RULES["W402"], trace, spot) for spot in spots]
    found = [one for one in found if one.rule.check_id not in silenced]
    return sorted(found, key=lambda one: (one.direction == Direction.DOWN, one.operation or 0, one.rule.id))


def _waiver_of(violation: Violation) -> tuple[str, str]:
    """Return the rule and the direction that a waiver of the violation names."""
    return violation.rule.id, violation.direction or Direction.UP
