"""Which models were there before and after each operation, as far as it needs to know?

Django renders a whole project's models once, and after each operation again whatever is related to the changed one,
however far: that takes most of the time where there are many. Here a state rolls on without being rendered, and each
operation gets an excerpt of it before and after, whose few models are rendered only if it asks for them.
"""

from collections.abc import Iterable
from typing import Any

from django.db.migrations.operations import RunPython, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.migrations.utils import resolve_relation

Key = tuple[str, str]
References = dict[Key, set[Key]]
Move = tuple[Operation, ProjectState, ProjectState]


class Rolling:
    """A state that operations change, one after the other.

    Args:
        state: that before the first of them. It is changed, and must not have been rendered, lest that be kept up.
    """

    def __init__(self, state: ProjectState) -> None:
        self.state = state
        self._references = _references(state)
        self._last: ProjectState | None = None

    def moves(self, operations: Iterable[Operation], app: str) -> list[Move]:
        """Return what the operations do to the database, each with the excerpts before and after it."""
        moves: list[Move] = []
        for operation in operations:
            if isinstance(operation, SeparateDatabaseAndState):
                moves += Rolling(self.state.clone()).moves(operation.database_operations, app)
                self._forwards(operation, app)
            else:
                before = self._excerpt(operation, app)
                self._forwards(operation, app)
                self._last = self._excerpt(operation, app)
                moves.append((operation, before, self._last))
        return moves

    def _forwards(self, operation: Operation, app: str) -> None:
        operation.state_forwards(app, self.state)
        self._references, self._last = _references(self.state), None

    def _excerpt(self, operation: Operation, app: str) -> ProjectState:
        """Return the operation's models, what points to them, and where all those point, each however far.

        An operation that is not Django's may ask for any model, and so may Python.
        """
        keys = set(self.state.models)
        if type(operation).__module__.startswith("django.") and not isinstance(operation, RunPython):
            attributes = ["model_name"] if hasattr(operation, "model_name") else ["name", "old_name", "new_name"]
            own = {(app, str(getattr(operation, attribute, "")).lower()) for attribute in attributes}
            keys &= _reached(_reached(own, _reversed(self._references)), self._references)
        if self._last and self._last.models.keys() == keys:
            return self._last
        needed = keys.union(*(self._references[key] for key in keys))
        models = {key: self.state.models[key].clone() for key in keys}
        return ProjectState(models, self.state.real_apps & {app for app, _ in needed})


def _references(state: ProjectState) -> References:
    """Return for each model those that it points to or inherits from."""
    found: References = {}
    for key, model in state.models.items():
        named: list[Any] = [base for base in model.bases if isinstance(base, str)]
        for field in model.fields.values():
            if remote := field.remote_field:
                named += [remote.model, getattr(remote, "through", None)]
        found[key] = {resolve_relation(name, *key) for name in named if name}
    return found


def _reversed(references: References) -> References:
    found: References = {}
    for key, others in references.items():
        for other in others:
            found.setdefault(other, set()).add(key)
    return found


def _reached(keys: set[Key], references: References) -> set[Key]:
    reached, new = set(keys), keys
    while new := set().union(*(references.get(key, ()) for key in new)) - reached:
        reached |= new
    return reached
