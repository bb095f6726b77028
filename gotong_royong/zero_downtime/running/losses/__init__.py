"""What would a rollback destroy, and where must it fail?

It collects the statements of the way back, without executing them, and reads one after the other. It follows each name
through earlier renames to the object of now, and counts its rows. What it does not understand counts as a loss.
"""

from django.apps import apps

from ...apps import APP
from ...postgres import catalog
from ...postgres.statements import quoted
from ..executor import Executor
from ..loader import is_own
from .collected import way_back
from .reader import Loss, Reader

__all__ = ["Loss", "Reader", "empties", "way_back"]


def empties(executor: Executor, found: Reader) -> bool:
    """Whether the way back drops all tables of the project's own models."""
    own = [
        model._meta.db_table
        for model in apps.get_models(include_auto_created=True)
        if is_own(model._meta.app_label) and model._meta.app_label != APP and model._meta.managed
    ]
    there = {catalog.table(executor.connection, quoted(name)) for name in own} - {None}
    return bool(there) and there <= found.present.tables_gone
