"""Who hears of a run? The receivers of ``pre_migrate`` and ``post_migrate``, as with Django's ``migrate``.

They keep other tables up to date: Django's own rename the content type of a renamed model, and make those of models
that come back.
"""

import sys
from collections.abc import Callable
from traceback import walk_tb
from typing import Any

from django.apps import apps
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.state import ModelState, StateApps
from django.db.models import signals

from ..exceptions import ReceiverFailed, in_full
from ..stages import Plan

BEFORE = "Nothing was migrated. Correct the receiver and try again."
AFTER = "The migrations are done and recorded. Correct the receiver and run migrate, which calls it again."
AFTER_BACKWARDS = (
    "The rollback is done and recorded. Correct the receiver: the next rollback or migrate calls it again, "
    "but migrate applies again what was taken back."
)


def send(name: str, verbosity: int, interactive: bool, db: str, *, go_on: bool = False, **how: Any) -> list[str]:
    """Send ``pre_migrate`` or ``post_migrate`` for each app, as Django does.

    Args:
        go_on: whether to go on with the other apps after a receiver failed, and to return the failures in words.

    Raises:
        ReceiverFailed: names the receiver and the app.
    """
    failed, is_back = list[str](), any(backwards for _, backwards in how.get("plan", ()))
    afterwards = BEFORE if name == "pre_migrate" else AFTER_BACKWARDS if is_back else AFTER
    for app in apps.get_app_configs():
        if app.models_module is None:
            continue
        if verbosity > 1:
            line = f"Running {name.replace('_', '-')} handlers for application {app.label}"
            print(line, file=how.get("stdout", sys.stdout))
        try:
            how_often = {"verbosity": verbosity, "interactive": interactive, "using": db}
            getattr(signals, name).send(sender=app, app_config=app, **how_often, **how)
        except Exception as error:
            if isinstance(error, ReceiverFailed) and not go_on:  # of a command that the receiver called
                raise
            said = in_full(error).rstrip(".")
            failed.append(f"{_receiver(error)}, a receiver of {name}, failed for the app {app.label}: {said}")
            if not go_on:
                raise ReceiverFailed(f"{failed[0]}. {afterwards}") from error
    return failed


def _receiver(error: Exception) -> str:
    """Return the name of the function that the signal called."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)][1:]
    called = next(frame for frame in frames if not frame.f_globals["__name__"].startswith("django.dispatch"))
    return f"{called.f_globals['__name__']}.{called.f_code.co_qualname}"


def between_signals(
    executor: MigrationExecutor, plan: Plan, take_back: Callable[[], object], *, go_on: bool = False, **how: Any
) -> list[str]:
    """Take the plan back between the two signals that ``migrate`` sends; then read the migrations again.

    A receiver may insert operations into the migrations of the plan, so ``take_back`` must use these very objects.

    Args:
        go_on: whether to go on when a receiver fails, and to return the failures in words.
        how: other arguments of the receivers: ``verbosity``, ``interactive``, ``stdout``.

    Raises:
        ReceiverFailed: if a receiver fails, without ``go_on``.
    """
    how = {"verbosity": 0, "interactive": False, "db": executor.connection.alias, "plan": plan, "go_on": go_on, **how}
    failed = send("pre_migrate", apps=_models(executor), **how)
    take_back()
    executor.loader.build_graph()
    return failed + send("post_migrate", apps=_models(executor), **how)


def _models(executor: Any) -> StateApps:
    """Render the models of the applied migrations, and the models of apps without migrations with their relations."""
    models: StateApps = executor._create_project_state(with_applied_migrations=True).apps
    real = [(model.app_label, model.name_lower) for model in models.real_models]
    with models.bulk_update():
        for key in real:
            models.unregister_model(*key)
    models.render_multiple([ModelState.from_model(apps.get_model(*key)) for key in real])
    return models
