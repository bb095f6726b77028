"""Which tables does code name, and which fields does it know? A model is rendered when a rule asks for it."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.backends.utils import strip_quotes, truncate_name
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import ManyToManyField, Model

from ..running.states import ModelKey, Rolling

Place = tuple[ModelKey, str]
"""A model, and its field that has a table of its own; an empty text for the model's table."""


class Code(Mapping[str, type[Model]]):
    """The models of a state, by their tables. The state may roll on; this stays.

    Args:
        rolling: the state.
        before: the code before, which is asked about the models that have not changed.
    """

    def __init__(self, rolling: Rolling | None = None, before: "Code | None" = None) -> None:
        self._state = rolling.snapshot() if rolling else Rolling(ProjectState())
        self._models: dict[ModelKey, ModelState] = self._state.state.models
        self._tables: dict[str, Place] = {}
        same: set[ModelKey] = set()
        if before:
            same = {key for key, model in self._models.items() if before._models.get(key) is model}
            self._tables |= {table: place for table, place in before._tables.items() if place[0] in same}
        for key in self._models.keys() - same:
            self._tables |= {table: (key, field) for table, field in _tables(self._models[key])}
        self._rendered: dict[str, type[Model]] = {}

    def __getitem__(self, table: str) -> type[Model]:
        if table not in self._rendered:
            key, field = self._tables[table]
            model: Any = self._model(key)
            self._rendered[table] = model._meta.get_field(field).remote_field.through if field else model
        return self._rendered[table]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def named(self, label: str) -> type[Model]:
        """Return the model of that label, such as ``accounts.User``."""
        app, name = label.split(".")
        return self._model((app, name.lower()))

    def _model(self, key: ModelKey) -> type[Model]:
        return self._state.excerpt({key}).apps.get_model(*key)

    def changed_since(self, before: "Code") -> set[str]:
        """Return the tables of the models that have changed."""
        old = before._models
        new = {key for key, model in self._models.items() if old.get(key) is not model}
        new -= {key for key in new & old.keys() if old[key] == self._models[key]}
        return {table for table, (key, _) in self._tables.items() if key in new}


def _tables(model: ModelState) -> Iterator[tuple[str, str]]:
    """Yield the tables of a model, each with the field that it is for, as ``Options`` and ManyToManyField name them."""
    swapped_for = getattr(settings, str(model.options.get("swappable")), None)
    label = f"{model.app_label}.{model.name_lower}"
    if model.options.get("proxy") or (swapped_for and swapped_for.lower() != label):
        return
    own = model.options.get("db_table") or _short(f"{model.app_label}_{model.name_lower}")
    yield own.replace('"', ""), ""
    for name, field in model.fields.items():
        if isinstance(field, ManyToManyField) and not field.remote_field.through:
            yield (vars(field)["db_table"] or _short(f"{strip_quotes(own)}_{name}")).replace('"', ""), name


def _short(name: str) -> str:
    return truncate_name(name, connection.ops.max_name_length())
