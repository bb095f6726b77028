"""Which migrations do the steps become? One for each stage, those before the deploy first."""

from collections.abc import Iterable

from django.db.migrations import Migration
from django.db.migrations.state import ProjectState

from ..stages import Key, Stage, key_of
from .rewrites import Rewriter, Step


def split(changes: dict[str, list[Migration]], state: ProjectState, order: Iterable[Migration]) -> None:
    """Replace each app's new migrations by their pieces.

    A piece before the deploy depends on such pieces, if there are some; one after the deploy on the last pieces. Within
    an app, pieces after the deploy come after all pieces before it.

    Args:
        changes: by app, the new migrations, connected to the graph.
        state: the models before them; it is not changed.
        order: the new migrations, each after its dependencies.

    Raises:
        NoWayForNewCode: as ``Rewriter.steps``.
    """
    rewriter = Rewriter(state.clone())
    steps = {key_of(migration): rewriter.steps(migration) for migration in order}
    pieces_of = {
        (key_of(one), stage): _pieces(one, steps[key_of(one)], stage)
        for migrations in changes.values()
        for one in migrations
        for stage in Stage
    }
    first, last = dict[Key, Migration](), dict[Key, Migration]()
    for (key, _), pieces in pieces_of.items():  # those before the deploy come first
        if pieces:
            first.setdefault(key, pieces[-1])
            last[key] = pieces[-1]
    for app, migrations in changes.items():
        changes[app] = [piece for stage in Stage for one in migrations for piece in pieces_of[key_of(one), stage]]
    new = [piece for pieces in changes.values() for piece in pieces]
    waits = any(
        _is_early(piece) and not all(_is_early(first[parent]) for parent in piece.dependencies if parent in first)
        for piece in new
    )
    for pieces in changes.values():
        for number, piece in enumerate(pieces):
            known = first if waits or _is_early(piece) else last
            parents = [key_of(known[parent]) if parent in known else parent for parent in piece.dependencies]
            before = [key_of(pieces[number - 1])] if number else []
            others = [parent for parent in parents if not (number and parent[0] == piece.app_label)]
            piece.dependencies = [*before, *dict.fromkeys(others)]  # type: ignore[misc]


def _is_early(piece: Migration) -> bool:
    return getattr(piece, "stage", None) == Stage.PRE_DEPLOY


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
        "initial": whole.initial if stage == Stage.PRE_DEPLOY and not number else None,
        "atomic": whole.atomic and not any(step.alone or step.data for step in steps),
        "stage": stage,
    }
    vars(piece).update(values)
    return piece
