"""When does a migration run: before the code that needs it ships, or after the code that used what it takes away?"""

from collections import deque
from collections.abc import Collection
from enum import StrEnum

from django.db.migrations import Migration
from django.db.migrations.graph import MigrationGraph

from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import ImpossibleStage

Plan = list[tuple[Migration, bool]]
Key = tuple[str, str]
"""The app and the name of a migration."""


class Stage(StrEnum):
    """Set as ``stage`` on a migration: expand before the deploy, contract after it."""

    PRE_DEPLOY = "pre_deploy"
    POST_DEPLOY = "post_deploy"


def key_of(migration: Migration) -> Key:
    """Return what the graph and django_migrations call the migration."""
    return migration.app_label, migration.name


def stage_of(migration: Migration) -> Stage:
    """Return the stage that the migration says, or that of all which say none.

    Raises:
        ImpossibleStage: if what it or the setting says is no stage.
    """
    said = getattr(migration, "stage", None)
    try:
        return Stage(conf.THIRD_PARTY_STAGE if said is None else said)
    except ValueError:
        if said is None:
            raise ImpossibleStage(
                f"ZERO_DOWNTIME_THIRD_PARTY_STAGE is {conf.THIRD_PARTY_STAGE!r}. "
                f"Set it to {Stage.PRE_DEPLOY.value!r} or {Stage.POST_DEPLOY.value!r}."
            ) from None
        raise ImpossibleStage(
            f"{migration} has stage {said!r}. Write stage = Stage.PRE_DEPLOY or stage = Stage.POST_DEPLOY."
        ) from None


def before_deploy(plan: Plan, graph: MigrationGraph) -> tuple[Plan, list[str]]:
    """Split off the steps that may run before the deploy: those of PRE_DEPLOY that need no step of POST_DEPLOY.

    Args:
        plan: unapplied migrations, each after those it depends on.

    Returns:
        Those steps, and for each PRE_DEPLOY step that must wait, the chain that holds it back:
        ``tasks.3 needs tasks.2 needs tasks.1``.
    """
    contract = {key_of(migration) for migration, _ in plan if stage_of(migration) == Stage.POST_DEPLOY}
    expand = [(step, _chain(key_of(step[0]), contract, graph)) for step in plan if key_of(step[0]) not in contract]
    return [step for step, chain in expand if not chain], [chain for _, chain in expand if chain]


def _chain(key: Key, targets: Collection[Key], graph: MigrationGraph) -> str:
    """Say the shortest way from ``key`` to one of ``targets`` that it needs; nothing if it needs none."""
    ways, seen = deque([[key]]), {key}
    while ways:
        way = ways.popleft()
        for parent in sorted(node.key for node in graph.node_map[way[-1]].parents):
            if parent in targets:
                return " needs ".join(".".join(step) for step in [*way, parent])
            if parent not in seen:
                seen.add(parent)
                ways.append([*way, parent])
    return ""
