"""Which migrations do the steps become? One for each stage, those before the deploy first."""

from collections.abc import Iterable

from django.db.migrations import Migration
from django.db.migrations.state import ProjectState

from ..stages import Key, Stage, key_of
from .rewrites import Rewriter, Step


def split(changes: dict[str, list[Migration]], state: ProjectState, order: Iterable[Migration]) -> None:
    """Replace each app's new migrations by their pieces.

    What depends on a migration depends on its piece before the deploy, if there is one. Within an app, pieces after the
    deploy come after all pieces before it.

    Args:
        changes: by app, the new migrations, connected to the graph.
        state: the models before them; it is not changed.
        order: the new migrations, each after its dependencies.

    Raises:
        NoWayForNewCode: as ``Rewriter.steps``.
    """
    rewriter = Rewriter(state.clone())
    steps = {key_of(migration): rewriter.steps(migration) for migration in order}
    first: dict[Key, Key] = {}
    for app, migrations in changes.items():
        all_pieces = [(one, stage, _pieces(one, steps[key_of(one)], stage)) for stage in Stage for one in migrations]
        for whole, stage, pieces in all_pieces:
            if pieces and (stage == Stage.PRE_DEPLOY or key_of(whole) not in first):
                first[key_of(whole)] = key_of(pieces[-1])
        changes[app] = [piece for _, _, pieces in all_pieces for piece in pieces]
    for app, pieces in changes.items():
        for number, piece in enumerate(pieces):
            others = [first.get(parent, parent) for parent in piece.dependencies]
            others = [parent for parent in others if parent != key_of(piece)]
            same_app = [key_of(pieces[number - 1])] if number else []
            kept = [parent for parent in others if not (number and parent[0] == app)]
            piece.dependencies = [*same_app, *dict.fromkeys(kept)]  # type: ignore[misc]


def _pieces(whole: Migration, steps: list[Step], stage: Stage) -> list[Migration]:
    """Return the parts of a migration that run in that stage: one for the schema, and one for each change of data."""
    chosen = [step for step in steps if step.stage == stage]
    schema = [step for step in chosen if not step.data]
    parts = [*([schema] if schema else []), *([step] for step in chosen if step.data)]
    if not steps and stage == Stage.PRE_DEPLOY:
        parts = [[]]
    return [_piece(whole, part, stage, number) for number, part in enumerate(parts)]


def _piece(whole: Migration, steps: list[Step], stage: Stage, number: int) -> Migration:
    piece = Migration(f"{whole.name}_{stage}_{number}", whole.app_label)
    values = {
        "operations": [step.operation for step in steps],
        "dependencies": list(whole.dependencies),
        "run_before": whole.run_before,
        "initial": whole.initial if stage == Stage.PRE_DEPLOY else None,
        "atomic": whole.atomic and not any(step.alone or step.data for step in steps),
        "stage": stage,
    }
    vars(piece).update(values)
    return piece
