"""How does a migration start a backfill, or require that one is done?"""

from typing import Any

from django.db import router
from django.db.migrations.operations import RunPython
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.models import Q

from ..backfills.declarations import declare, declared


class _OfBackfill(Operation):
    """What both operations share.

    Args:
        name: such as ``"accounts.populate_markov_user_ids"``.
    """

    reduces_to_sql = False
    atomic = False
    category = OperationCategory.PYTHON

    def __init__(self, name: str) -> None:
        self.name = name

    def deconstruct(self) -> Any:
        return type(self).__qualname__, [self.name], {}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def _call(self, function: str, app_label: str, schema_editor: Any, state: Any) -> None:
        """Call a function of ``inline``. Imported here: a migration file may be imported before there are models."""
        from ..backfills import inline

        connection = schema_editor.connection
        if router.allow_migrate(connection.alias, app_label):
            getattr(inline, function)(self.name, connection, state.apps.get_model(declared(self.name).model))


class RunBackfill(_OfBackfill, RunPython):
    """A ``RunPython`` that does a backfill, or leaves it to the workers if its table is large.

    Backwards it does the reverse that the backfill names. It stands alone in a migration with ``atomic = False``. Each
    batch locks its rows (FOR NO KEY UPDATE: https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS).

    Args:
        name: such as ``"accounts.populate_markov_user_ids"``.
        wait: whether to do all of it here, however large the table is: a later migration of the same run needs it.

    Raises:
        BackfillFailed: if it fails here, or rows are set aside.
        BackfillRefused: in a transaction, or if the backfill is paused.
    """

    code: Any

    def __init__(self, name: str, *, wait: bool = False) -> None:
        super().__init__(name)
        self.wait, self.code, self.reverse_code, self.hints = wait, self._call, None, {}

    @property
    def model(self) -> tuple[str, str]:
        """The app label and the name of the model whose rows it changes.

        Raises:
            UnknownBackfill: if this release of the code does not declare the backfill.
        """
        app_label, name = declared(self.name).model.split(".")
        return app_label, name

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        return bool(declared(self.name).reverse)

    def deconstruct(self) -> Any:
        return type(self).__qualname__, [self.name], {"wait": True} if self.wait else {}

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._call("finish" if self.wait else "start", app_label, schema_editor, from_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._call("take_back", app_label, schema_editor, from_state)

    def describe(self) -> str:
        return f"Run the backfill {self.name}"


class FillField(RunBackfill):
    """A ``RunBackfill`` that this migration declares itself: it fills a field where it is NULL.

    Backwards it forgets the backfill; the values stay.

    Args:
        name: of the backfill.
        model: the label of the model, such as ``"shop.Book"``.
        field: the name of the field.
        value: what it gets; an expression, too.

    Raises:
        BackfillFailed: if it fails here, or rows are set aside.
        BackfillRefused: in a transaction, or if the backfill is paused.
    """

    reversible = True

    def __init__(self, name: str, model: str, field: str, value: Any) -> None:
        super().__init__(name)
        self.filled = model, field, value
        declare(name, model=model, where=Q(**{f"{field}__isnull": True}), update={field: value})

    def deconstruct(self) -> Any:
        return type(self).__qualname__, [self.name, *self.filled], {}

    def named(self, name: str) -> "FillField":
        """Return the same one with another name."""
        return type(self)(name, *self.filled)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._call("forget", app_label, schema_editor, from_state)

    def describe(self) -> str:
        model, field, _ = self.filled
        return f"Fill {field} of {model} where it is NULL"


class RequireBackfill(_OfBackfill):
    """Refuse to go on until a backfill is done and verified; do the rest of it if that is little.

    Args:
        name: such as ``"accounts.populate_markov_user_ids"``.

    Raises:
        BackfillRefused: if more than ``ZERO_DOWNTIME_BACKFILL_INLINE`` rows may be left, or it is paused or canceled.
        BackfillFailed: if the rest fails here.
    """

    reversible = True

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._call("require", app_label, schema_editor, from_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the rows as they are."""

    def describe(self) -> str:
        return f"Require the backfill {self.name}"
