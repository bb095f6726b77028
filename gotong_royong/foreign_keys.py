"""What makes a foreign key do what a delete of the row it points at asks? Django 5.2 leaves that to Python."""

from typing import Any

from django.db.migrations import RunSQL

CONSTRAINT = (
    "ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} FOREIGN KEY ({column}) "
    "REFERENCES {target} (id) {action} DEFERRABLE INITIALLY DEFERRED NOT VALID"
)
VALIDATE = "ALTER TABLE {table} VALIDATE CONSTRAINT {name}"


def on_delete(table: str, column: str, target: str, action: str, *, name: str) -> RunSQL:
    """Replace the foreign key ``name`` by one ``ON DELETE action``, in a migration that is not atomic.

    The replacement takes ACCESS EXCLUSIVE on both tables for a moment; what reads the rows is VALIDATE, under
    SHARE UPDATE EXCLUSIVE on ``table`` and ROW SHARE on ``target``, which let reads and writes go on
    (https://www.postgresql.org/docs/current/sql-altertable.html).
    """

    def statements(action: str) -> Any:
        values = {"table": table, "column": column, "target": target, "name": name, "action": action}
        return [CONSTRAINT.format(**values), VALIDATE.format(**values)]

    return RunSQL(sql=statements(f"ON DELETE {action}"), reverse_sql=statements(""))
