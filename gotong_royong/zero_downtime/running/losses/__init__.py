"""What may a way back destroy, and where must it fail?

Its statements are collected, not executed, and read one after the other. A name in them is followed back through the
renames before it to what bears it now, so that is counted which is there. What cannot be told counts as a loss.
Nothing is changed here.
"""

from django.apps import apps

from ...apps import APP
from ...postgres import catalog
from ..executor import Executor
from ..loader import is_own
from .collected import way_back
from .present import quoted
from .reader import Loss, Reader

__all__ = ["Loss", "Reader", "empties", "way_back"]


def empties(executor: Executor, found: Reader) -> bool:
    """Whether the way back leaves none of the tables that the project's own models have now."""
    own = [
        model._meta.db_table
        for model in apps.get_models(include_auto_created=True)
        if is_own(model._meta.app_label) and model._meta.app_label != APP and model._meta.managed
    ]
    there = {catalog.table(executor.connection, quoted(name)) for name in own} - {None}
    return bool(there) and there <= found.present.tables_gone
