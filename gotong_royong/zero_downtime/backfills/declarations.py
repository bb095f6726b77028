"""Which backfills are there, and what does each of them do to which rows?"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, FieldError, ValidationError
from django.db import DEFAULT_DB_ALIAS
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model, Q, QuerySet
from django.db.models.sql import UpdateQuery
from django.utils.module_loading import autodiscover_modules

from ..exceptions import BackfillRefused, UnknownBackfill, meant

WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")  # MarkovUserIDs becomes markov_user_ids
DECLARED: dict[str, "type[BackfillDeclaration]"] = {}


class BackfillDeclaration:
    """A change of data, declared in an app's ``backfills.py``.

    Its name is ``app_label.name_of_the_class``. The change of a row must make ``where`` false for that row::

        class PopulateMarkovUserIDs(BackfillDeclaration):
            model = "accounts.User"
            where = Q(markov_user_id=None)
            update = {"markov_user_id": Concat(Value("markov:"), Cast("id", TextField()))}

    A method ``process`` may replace ``update``. Without a ``where``, the backfill changes every row that exists when it
    begins once, in the order of the primary key.
    """

    model: ClassVar[str]
    """The label of the model, such as ``accounts.User``."""

    where: ClassVar[Q | None] = None
    """The rows that are still to do."""

    update: ClassVar[Mapping[str, Any]] = {}
    """What to set, as ``QuerySet.update`` takes it. PostgreSQL changes the rows; no row is fetched."""

    reverse: ClassVar[str] = ""
    """The name of the backfill that takes this one back, or nothing."""

    def process(self, batch: QuerySet[Any]) -> None:
        """Change the rows of ``batch``, which are locked (FOR NO KEY UPDATE) until the batch commits.

        The lock includes the rows of parent models, but not the rows that ``where`` joins. An exception is recorded
        for the row that causes it. PostgreSQL ends the session if it does not use the database for 30 seconds.
        """
        batch.update(**self.update)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if app := apps.get_containing_app_config(cls.__module__):
            cls.name = f"{app.label}.{WORDS.sub('_', cls.__name__).lower()}"
            DECLARED[cls.name] = cls

    name: ClassVar[str] = ""

    @classmethod
    def has_process(cls) -> bool:
        """Whether the class has a ``process`` method of its own."""
        return cls.process is not BackfillDeclaration.process


def declare(name: str, **values: Any) -> None:
    """Declare a backfill of a migration, with these attributes of ``BackfillDeclaration``."""
    DECLARED[name] = type("OfMigration", (BackfillDeclaration,), {"__module__": "", "name": name, **values})


def declared(name: str) -> type[BackfillDeclaration]:
    """Return the declaration of that name.

    Raises:
        UnknownBackfill: if this release of the code declares none.
        BackfillRefused: if it lacks a model, or an update or process, or names an unknown reverse.
    """
    autodiscover_modules("backfills")
    if name not in DECLARED:
        MigrationLoader(None, ignore_no_migrations=True)  # what it imports may declare some
    if name not in DECLARED:
        near = meant(name, DECLARED, "backfill list shows those that are.")
        raise UnknownBackfill(f"No backfill {name} is declared in the code that runs here. {near}")
    found = DECLARED[name]
    if bool(found.update) is found.has_process():
        raise BackfillRefused(f"{name} must have either update or process. Write one of them in its class.")
    if not re.fullmatch(r"\w+\.\w+", str(getattr(found, "model", None))):
        raise BackfillRefused(f'{name} does not say whose rows it changes. Write model = "app.Model" in its class.')
    if found.reverse and found.reverse not in DECLARED:
        raise BackfillRefused(f"{name} names {found.reverse} as its reverse, which is not declared. Correct its class.")
    return found


def model_of(declaration: type[BackfillDeclaration], alias: str = DEFAULT_DB_ALIAS) -> type[Model]:
    """Return the current model. No database is asked.

    Args:
        alias: the database whose SQL checks the declaration.

    Raises:
        BackfillRefused: if there is no such model, it lacks a field of the declaration, or a value does not fit.
    """
    try:
        model = apps.get_model(declaration.model)
        if declaration.where is not None:
            QuerySet(model).filter(declaration.where)
        query = UpdateQuery(model)
        query.add_update_values(dict(declaration.update))
        for part in query.get_related_updates():  # those of the tables of inherited models
            part.get_compiler(alias).as_sql()
        query.related_updates = {}  # type: ignore[attr-defined]
        query.get_compiler(alias).as_sql()
    except (LookupError, FieldDoesNotExist, FieldError, ValidationError, TypeError, ValueError) as error:
        reason = " ".join(error.messages) if isinstance(error, ValidationError) else str(error)
        raise BackfillRefused(
            f"{declaration.name} does not fit the models of the code that runs here: {reason.rstrip('.')}. "
            f"Correct its class, or run it with the code that it was written for; until then it stays as it is."
        ) from None
    return model


def all_declared() -> list[str]:
    """Return the names of the backfills that this release of the code declares, sorted."""
    autodiscover_modules("backfills")
    return sorted(DECLARED)


def takes_back(name: str) -> str:
    """Return the name of the backfill whose reverse is this one; nothing if there is none."""
    return next((other for other in all_declared() if DECLARED[other].reverse == name), "")
