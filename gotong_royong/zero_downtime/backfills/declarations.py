"""Which backfills are there, and what does each of them do to which rows?"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, FieldError, ValidationError
from django.db import DEFAULT_DB_ALIAS
from django.db.models import Model, Q, QuerySet
from django.db.models.sql import UpdateQuery
from django.utils.module_loading import autodiscover_modules

from ..exceptions import BackfillRefused, UnknownBackfill, meant

WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")  # MarkovUserIDs is markov_user_ids
DECLARED: dict[str, "type[BackfillDeclaration]"] = {}


class BackfillDeclaration:
    """A change of data, declared in an app's ``backfills.py``: what to do with the rows that are still to do.

    It is called ``app_label.name_of_the_class``. What it changes in a row must make ``where`` false for that row::

        class PopulateMarkovUserIDs(BackfillDeclaration):
            model = "accounts.User"
            where = Q(markov_user_id=None)
            update = {"markov_user_id": Concat(Value("markov:"), Cast("id", TextField()))}

    Instead of ``update`` it may have a method ``process``. Without a ``where``, every row that was there when it
    began is changed once, in the order of the primary key.
    """

    model: ClassVar[str]
    """The label of the model, such as ``accounts.User``."""

    where: ClassVar[Q | None] = None
    """The rows that are still to do."""

    update: ClassVar[Mapping[str, Any]] = {}
    """What to set, as ``QuerySet.update`` takes it: done by PostgreSQL, without fetching the rows."""

    reverse: ClassVar[str] = ""
    """The backfill that takes this one back, if there is one."""

    def process(self, batch: QuerySet[Any]) -> None:
        """Change the rows of ``batch``, which are locked (FOR NO KEY UPDATE) until the batch is committed with them.

        So is what an inherited model has of them in the tables of its parents, but not what ``where`` joins to them.

        Whatever it raises is written down for the row that it cannot do, once that is found. Its session is ended if
        it does not use the database for 30 seconds.
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
        return cls.process is not BackfillDeclaration.process


def declared(name: str) -> type[BackfillDeclaration]:
    """Return the declaration of that name.

    Raises:
        UnknownBackfill: if there is none in this release of the code.
        BackfillRefused: if it does not say what to do to what, or names a reverse that is not there.
    """
    autodiscover_modules("backfills")
    if name not in DECLARED:
        near = meant(name, DECLARED, "backfill list shows those that are.")
        raise UnknownBackfill(f"No backfill {name} is declared in the code that runs here. {near}")
    found = DECLARED[name]
    if bool(found.update) is found.has_process():
        raise BackfillRefused(f"{name} must have either update or process. Write one of them in its class.")
    if not re.fullmatch(r"\w+\.\w+", str(getattr(found, "model", None))):
        raise BackfillRefused(f'{name} does not say whose rows it changes. Write model = "app.Model" in its class.')
    if found.reverse and found.reverse not in DECLARED:
        raise BackfillRefused(f"{name} names {found.reverse} as its reverse, which is not declared. Mend its class.")
    return found


def model_of(declaration: type[BackfillDeclaration], alias: str = DEFAULT_DB_ALIAS) -> type[Model]:
    """Return the model as the code has it now. Asks no database anything.

    Args:
        alias: of the database whose SQL it is to be.

    Raises:
        BackfillRefused: if there is none, or it lacks a field that the declaration names, or such a field cannot have
            the value that it is given.
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
            f"Mend its class, or run it with the code that it was written for; until then it stays as it is."
        ) from None
    return model


def all_declared() -> list[str]:
    autodiscover_modules("backfills")
    return sorted(DECLARED)


def takes_back(name: str) -> str:
    """Return which backfill names this one as its reverse; nothing if none does."""
    return next((other for other in all_declared() if DECLARED[other].reverse == name), "")
