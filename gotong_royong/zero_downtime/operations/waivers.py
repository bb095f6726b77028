"""How does a migration waive a rule of the linter?"""

from typing import Any

from django.db.migrations.operations.base import Operation, OperationCategory

DIRECTIONS = {"up", "down"}


class IgnoreRules(Operation):
    """Waive rules of the linter for this migration; changes neither the database nor the models.

    Args:
        rules: their ids, such as ``"E101"``.
        reason: why that does no harm here.
        direction: the direction in which they may be broken: ``"up"`` or ``"down"``.

    Raises:
        ValueError: without a rule, without a reason, or for another direction.
    """

    reduces_to_sql = True
    reversible = True
    elidable = True
    category = OperationCategory.MIXED

    def __init__(self, *rules: str, reason: str, direction: str = "up") -> None:
        if not rules or not reason.strip() or direction not in DIRECTIONS:
            raise ValueError('Write IgnoreRules("E101", reason="why that does no harm here"), or direction="down" too.')
        self.rules, self.reason, self.direction = rules, reason, direction

    def deconstruct(self) -> Any:
        more = {"direction": self.direction} if self.direction != "up" else {}
        return type(self).__qualname__, list(self.rules), {"reason": self.reason, **more}

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Leave the models as they are."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the database as it is."""

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Leave the database as it is."""

    def describe(self) -> str:
        return f"Ignore {', '.join(self.rules)} on the way {self.direction}: {self.reason}"
