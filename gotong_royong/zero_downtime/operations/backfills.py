"""How does a migration start a backfill, or wait for one?"""

from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from ..backfills.declarations import declared


class RunBackfill(Operation):
    """Do a backfill if its table is small, else leave it to the workers; backwards, do its reverse, if it names one.

    Stands alone in a migration with ``atomic = False``. Locks rows (FOR NO KEY UPDATE), a batch at a time.

    Args:
        name: such as ``"accounts.populate_markov_user_ids"``.
    """

    reduces_to_sql = False
    atomic = False
    category = OperationCategory.PYTHON

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        return bool(declared(self.name).reverse)

    def deconstruct(self) -> Any:
        return type(self).__qualname__, [self.name], {}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if router.allow_migrate(schema_editor.connection.alias, app_label):
            _inline().start(self.name, schema_editor.connection, self._model(from_state))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if router.allow_migrate(schema_editor.connection.alias, app_label):
            _inline().take_back(self.name, schema_editor.connection, self._model(from_state))

    def _model(self, state: Any) -> Any:
        return state.apps.get_model(declared(self.name).model)

    def describe(self) -> str:
        return f"Run the backfill {self.name}"


class RequireBackfill(RunBackfill):
    """Refuse to go on until a backfill is done and verified; do the rest of it if that is little.

    Args:
        name: such as ``"accounts.populate_markov_user_ids"``.
    """

    reversible = True

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if router.allow_migrate(schema_editor.connection.alias, app_label):
            _inline().require(self.name, schema_editor.connection, self._model(from_state))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the rows as they are."""

    def describe(self) -> str:
        return f"Require the backfill {self.name}"


def _inline() -> Any:
    """Import what needs the models only when a migration runs: its file may be imported before there are any."""
    from ..backfills import inline

    return inline
