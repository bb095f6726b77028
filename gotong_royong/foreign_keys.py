"""How does a foreign key get its ON DELETE in the database? Django 5.2 carries it out in Python."""

from typing import Any

from django.db.migrations import RunSQL

CONSTRAINT = (
    "ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} FOREIGN KEY ({column}) "
    "REFERENCES {target} (id) {action} DEFERRABLE INITIALLY DEFERRED NOT VALID"
)
VALIDATE = "ALTER TABLE {table} VALIDATE CONSTRAINT {name}"


def on_delete(table: str, column: str, target: str, action: str, *, name: str) -> RunSQL:
    """Replace the foreign key ``name`` by one with ``ON DELETE action``, in a migration that is not atomic.

    The replacement takes ACCESS EXCLUSIVE on both tables for a moment. VALIDATE reads the rows under SHARE UPDATE
    EXCLUSIVE on ``table`` and ROW SHARE on ``target``, which block no reads and writes
    (https://www.postgresql.org/docs/current/sql-altertable.html).
    """

    def statements(action: str) -> Any:
        values = {"table": table, "column": column, "target": target, "name": name, "action": action}
        return [CONSTRAINT.format(**values), VALIDATE.format(**values)]

    return RunSQL(sql=statements(f"ON DELETE {action}"), reverse_sql=statements(""))
