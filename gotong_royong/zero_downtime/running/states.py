"""Which models does an operation see before and after itself?

Django renders all models of a project, and after each operation again all that are related to the changed one, however
far. With many models that takes most of the time. Here a state changes without being rendered, and each operation gets
excerpts from before and after it, whose few models are rendered only on demand.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

from django.db.migrations import Migration
from django.db.migrations.operations import (
    AlterField,
    RenameField,
    RenameModel,
    RunPython,
    RunSQL,
    SeparateDatabaseAndState,
)
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState, ProjectState
from django.db.migrations.utils import resolve_relation
from django.db.transaction import atomic

ModelKey = tuple[str, str]
"""The app of a model and its name in lower case, as a state has them."""
References = dict[ModelKey, bool]
"""The models that a model points to or inherits from, and whether that reference is a key to which others can point."""
Move = tuple[Operation, ProjectState, ProjectState]

LOOKING_BACK = AlterField | RenameField | RenameModel
"""Operations that also use the models that point to their model."""


class Rolling:
    """A state that operations change, one after the other; a changed model becomes another object.

    Args:
        state: the one before the first operation. It changes, and must not be rendered.
    """

    def __init__(self, state: ProjectState) -> None:
        self.state = state
        self._references = {key: _references(key, model) for key, model in state.models.items()}
        self._last: ProjectState | None = None

    def step(self, operation: Operation, app: str) -> tuple[ProjectState, ProjectState]:
        """Change the state by the operation; return excerpts from before and after."""
        before = self._excerpt_for(operation, app)
        self.forwards(operation, app)
        self._last = self._excerpt_for(operation, app)
        return before, self._last

    def moves(self, operations: Iterable[Operation], app: str) -> list[Move]:
        """Return the operations on the database, each with the excerpts before and after it."""
        moves: list[Move] = []
        for operation in operations:
            if isinstance(operation, SeparateDatabaseAndState):
                moves += Rolling(self.state.clone()).moves(operation.database_operations, app)
                self.forwards(operation, app)
            else:
                moves.append((operation, *self.step(operation, app)))
        return moves

    def perform(self, operation: Operation, migration: Migration, editor: Any) -> None:
        """Carry out an operation of the migration as ``Migration.apply`` does, with excerpts as states."""
        before, after = self.step(operation, migration.app_label)
        with transaction_of(operation, migration, editor):
            operation.database_forwards(migration.app_label, editor, before, after)

    def snapshot(self) -> "Rolling":
        """Return a copy that does not change any more."""
        now = copy(self)
        now.state = ProjectState(dict(self.state.models), self.state.real_apps)
        now._references = dict(self._references)
        return now

    def excerpt(self, keys: set[ModelKey]) -> ProjectState:
        """Return a state with these models and those that they point to; with more, if it is rendered already."""
        needed = self._needed(keys, keys) & self.state.models.keys()
        last = self._last
        return last if last and "apps" in vars(last) and needed <= last.models.keys() else self._excerpt(needed)

    def forwards(self, operation: Operation, app: str) -> None:
        """Change the state by the operation."""
        if type(operation) is RunPython:
            return
        own, models = _own(operation, app), self.state.models
        may_change = None if _is_one_of(operation, RenameModel) else own
        for key in models if may_change is None else may_change & models.keys():
            models[key] = models[key].clone()
        operation.state_forwards(app, self.state)
        self._last = None
        for key in models.keys() | self._references.keys() if may_change is None else may_change:
            if key in models:
                self._references[key] = _references(key, models[key])
            else:
                self._references.pop(key, None)

    def _excerpt_for(self, operation: Operation, app: str) -> ProjectState:
        """Return the operation's models and those they point to; for LOOKING_BACK also those that point to them.

        An operation that is not Django's gets all models, and so does Python.
        """
        keys = set(self.state.models)
        if (own := _own(operation, app)) is not None:
            keys &= self._needed(own, self._around(own) if isinstance(operation, LOOKING_BACK) else own)
        return self._last if self._last and self._last.models.keys() == keys else self._excerpt(keys)

    def _excerpt(self, keys: set[ModelKey]) -> ProjectState:
        models = {key: self._excerpt_of_model(key, keys) for key in self.state.models if key in keys}
        needed = keys.union(*(self._references[key] for key in keys))
        real_apps = {app for app, _ in needed} if len(models) < len(self.state.models) else self.state.real_apps
        return ProjectState(models, self.state.real_apps & real_apps)

    def _around(self, own: set[ModelKey]) -> set[ModelKey]:
        """Return the models and those that point to them, and further back along references that are keys."""
        around, new = set(own), own
        while new:
            pointing = {
                (key, any(keys.get(other) for other in new))
                for key, keys in self._references.items()
                if not keys.keys().isdisjoint(new)
            }
            new = {key for key, is_key in pointing if is_key} - around
            around |= {key for key, _ in pointing}
        return around

    def _needed(self, own: set[ModelKey], around: set[ModelKey]) -> set[ModelKey]:
        """Return these models, those that ``own`` point to, and further along references that are keys."""
        needed = around.union(*(self._references.get(key, ()) for key in own))
        new = needed
        while new:
            new = {other for key in new for other, is_key in self._references.get(key, {}).items() if is_key} - needed
            needed |= new
        return needed

    def _excerpt_of_model(self, key: ModelKey, keys: set[ModelKey]) -> ModelState:
        """Return a copy of the model without the fields that point to migrated models outside of ``keys``."""
        model: ModelState = self.state.models[key].clone()
        for name, field in list(model.fields.items()):
            if field.remote_field and any(o in self.state.models and o not in keys for o in _pointed_to(field, key)):
                del model.fields[name]
                if model.options.get("order_with_respect_to") == name:
                    del model.options["order_with_respect_to"]
        return model


@contextmanager
def transaction_of(operation: Operation, migration: Migration, editor: Any) -> Iterator[None]:
    """Open a transaction if Django gives the operation one of its own; tell the guard which operation runs.

    Raises:
        LeftOpen: if the operation leaves a transaction open.
    """
    own = has_own_transaction(operation, migration) and not editor.atomic_migration
    transaction = atomic(editor.connection.alias) if own else nullcontext()
    none_is_left = getattr(editor, "leaving_no_transaction", nullcontext)
    with transaction, getattr(editor, "carrying_out", nullcontext)(operation), none_is_left():
        yield


def has_own_transaction(operation: Operation, migration: Migration) -> bool:
    """Whether Django gives the operation a transaction of its own if the migration has none."""
    return bool(operation.atomic or (migration.atomic and operation.atomic is not False))


def with_inner(*operations: Operation) -> Iterator[Operation]:
    """Yield the operations, each followed by its ``database_operations``."""
    for operation in operations:
        yield operation
        yield from with_inner(*getattr(operation, "database_operations", ()))


def _own(operation: Operation, app: str) -> set[ModelKey] | None:
    """Return the models that the operation names; None if it may use any."""
    if not type(operation).__module__.startswith("django.") or getattr(operation, "database_operations", None):
        return None
    if isinstance(operation, RunPython):
        return set() if operation.code is operation.reverse_code is RunPython.noop else None
    if isinstance(operation, RunSQL | SeparateDatabaseAndState):
        each = [_own(one, app) for one in operation.state_operations]
        return None if None in each else set().union(*filter(None, each))
    attributes = ["model_name"] if hasattr(operation, "model_name") else ["name", "old_name", "new_name"]
    return {(app, str(getattr(operation, attribute, "")).lower()) for attribute in attributes}


def _is_one_of(operation: Operation, kinds: Any) -> bool:
    """Whether it, or one of its ``state_operations``, is of one of these kinds."""
    return isinstance(operation, kinds) or any(
        _is_one_of(one, kinds) for one in getattr(operation, "state_operations", None) or ()
    )


def _references(key: ModelKey, model: ModelState) -> References:
    found = {resolve_relation(base, *key): True for base in model.bases if isinstance(base, str)}
    uniques = [getattr(one, "fields", ()) for one in model.options.get("constraints", ())]
    for name, field in model.fields.items():
        if field.remote_field:
            is_key = field.primary_key or field.unique or (name,) in uniques
            for other in _pointed_to(field, key):
                found[other] = found.get(other, False) or is_key
    return found


def _pointed_to(field: Any, key: ModelKey) -> list[ModelKey]:
    named = [field.remote_field.model, getattr(field.remote_field, "through", None)]
    return [resolve_relation(name, *key) for name in named if name]
