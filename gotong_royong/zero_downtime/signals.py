"""Who is told that migrations are about to be taken back, and that they were? All that hear of ``migrate app name``.

Receivers of ``pre_migrate`` and ``post_migrate`` keep other tables true: Django's own renames the content type of a
renamed model, and makes those of models that come back.
"""

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ModelState, StateApps

from gotong_royong.zero_downtime.stages import Plan


def between_signals(executor: MigrationExecutor, plan: Plan, take_back: Callable[[], object], **how: Any) -> None:
    """Take the plan back between the two signals that ``migrate`` sends. Reads the migrations again after it.

    A receiver may insert operations into the migrations of the plan, so ``take_back`` must use these very objects.

    Args:
        how: what the receivers are told beside: ``verbosity``, ``interactive``, ``stdout``.
    """
    how = {"verbosity": 0, "interactive": False, "db": executor.connection.alias, "plan": plan, **how}
    emit_pre_migrate_signal(apps=_models(executor), **how)
    take_back()
    executor.loader.build_graph()
    emit_post_migrate_signal(apps=_models(executor), **how)


def _models(executor: Any) -> StateApps:
    """Render the models of the applied migrations, and with all their relations those of apps without migrations."""
    models: StateApps = executor._create_project_state(with_applied_migrations=True).apps
    real = [(model.app_label, model.name_lower) for model in models.real_models]
    with models.bulk_update():
        for key in real:
            models.unregister_model(*key)
    models.render_multiple([ModelState.from_model(apps.get_model(*key)) for key in real])
    return models
