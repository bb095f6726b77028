"""Which schema editor does a connection get, so that its DDL may run twice?

A subclass of the connection's own editor and ours. It recognizes Django's statements by their templates.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

from .definitions import Template
from .schema import SchemaEditor

# What Django writes elsewhere than in the sql_… attributes of its editor.
ADD_EXCLUSION = "ALTER TABLE %(table)s ADD %(constraint)s"

# For each check: the kind of the object, the parts of the statement that name it (the check's arguments), and the
# attributes of Django's editor that hold the templates.
CHECKS: list[tuple[Callable[..., str] | None, str, str, str]] = [
    (SchemaEditor._table, "table", "table", "create_table"),
    (SchemaEditor._column, "column", "table column", "create_column"),
    (SchemaEditor._index, "index", "table name", "create_index create_index_concurrently create_unique_index"),
    (SchemaEditor._constraint, "constraint", "table name", "create_unique create_check create_pk"),
    (SchemaEditor._foreign_key, "constraint", "table name", "create_fk"),
    (SchemaEditor._altered_column, "column", "table changes", "alter_column"),
    (SchemaEditor._filled_column, "values of column", "table column", "update_with_default"),
    (SchemaEditor._identity, "identity of column", "table column", "add_identity drop_indentity"),
    (SchemaEditor._renamed_table, "name of table", "old_table new_table", "rename_table"),
    (SchemaEditor._renamed_column, "name of column", "table old_column new_column", "rename_column"),
    (SchemaEditor._renamed_index, "name of index", "table old_name new_name", "rename_index"),
    (SchemaEditor._no_table, "table", "table", "delete_table"),
    (SchemaEditor._no_column, "column", "table column", "delete_column"),
    (SchemaEditor._no_index, "index", "table name", "delete_index delete_index_concurrently"),
    (
        SchemaEditor._no_constraint,
        "constraint",
        "table name",
        "delete_constraint delete_check delete_unique delete_pk delete_fk",
    ),
    (None, "comment of table", "table", "alter_table_comment"),
    (None, "comment of column", "table column", "alter_column_comment"),
]


@contextmanager
def idempotent_ddl(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Use our editor for all schema changes of the connection during the block. Takes no lock itself."""
    editor = connection.SchemaEditorClass
    connection.SchemaEditorClass = schema_editor_class(editor)
    try:
        yield
    finally:
        connection.SchemaEditorClass = editor


@functools.cache
def schema_editor_class(base: type[DatabaseSchemaEditor]) -> type[SchemaEditor]:
    """Return the editor for connections whose own editor is ``base``: PostgreSQL's or a subclass."""
    if issubclass(base, SchemaEditor):
        return base
    plain = {name: getattr(base, name) for name in dir(base) if name.startswith("sql_")}
    templates = {name: Template(template) for name, template in plain.items() if isinstance(template, str)}
    found = [
        (templates[f"sql_{attribute}"], check, kind, parts.split())
        for check, kind, parts, attributes in CHECKS
        for attribute in attributes.split()
        if f"sql_{attribute}" in templates
    ]
    found.append((Template(ADD_EXCLUSION), SchemaEditor._constraint, "constraint", ["table"]))
    checks = {template: (check, parts) for template, check, _, parts in found if check}
    kinds = {template: (kind, parts) for template, _, kind, parts in found}
    return type("SchemaEditor", (SchemaEditor, base), {**templates, "checks": checks, "kinds": kinds})
