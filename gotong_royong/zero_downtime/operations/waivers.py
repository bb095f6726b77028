"""How does a migration say that it breaks a rule of the linter on purpose?"""

from typing import Any

from django.db.migrations.operations.base import Operation, OperationCategory


class IgnoreRules(Operation):
    """Let this migration break some rules of the linter; does nothing to the database or the models.

    Args:
        rules: their ids, such as ``"E101"``.
        reason: why that does no harm here; somebody will read it.

    Raises:
        ValueError: without a rule or without a reason.
    """

    reduces_to_sql = True
    reversible = True
    elidable = True
    category = OperationCategory.MIXED

    def __init__(self, *rules: str, reason: str) -> None:
        if not rules or not reason.strip():
            raise ValueError('Write IgnoreRules("E101", reason="why that does no harm here").')
        self.rules, self.reason = rules, reason

    def deconstruct(self) -> Any:
        return type(self).__qualname__, list(self.rules), {"reason": self.reason}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the database as it is."""

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the database as it is."""

    def describe(self) -> str:
        return f"Ignore {', '.join(self.rules)}: {self.reason}"
