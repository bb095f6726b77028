"""What do the admin's pages share? Lists that stay quick at ten million rows, and forms that know the defaults.

The apps' own ``admin.py`` only say what each page shows. This module knows none of their models.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import MAXYEAR, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import BaseModelAdmin, IncorrectLookupParameters
from django.contrib.admin.utils import build_q_object_from_lookup_parameters, display_for_field
from django.contrib.admin.views import main
from django.contrib.admin.widgets import AdminTextInputWidget
from django.core import paginator
from django.core.exceptions import ValidationError
from django.db import DataError, models
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

admin.site.site_header = admin.site.site_title = "Gotong Royong"
admin.site.index_title = "Tables"
admin.site.site_url = None  # "View site" would lead back here


def relations(model: type[models.Model]) -> list[Any]:
    return [field for field in model._meta.fields if field.is_relation]


class Estimate(int):
    """A number of rows as the planner guesses it, which says so wherever it is printed."""

    def __str__(self) -> str:
        return f"about {round(self, 3 - len(str(int(self)))):,}"


class Paginator(paginator.Paginator):  # type: ignore[type-arg]
    """Counts exactly while that is cheap; of more rows it takes the planner's estimate, and never walks to their end.

    The estimate knows the filters and, unlike ``pg_class.reltuples``, has a guess for a table that was never analyzed.
    Up to ten times the limit it is not believed, and rows are counted up to the limit. Pages end at a hundred times the
    limit, because OFFSET reads what it skips: the rows after that are found by date, filter, search or reverse order.
    """

    object_list: models.QuerySet[Any]
    exact_up_to = 10_000

    @cached_property
    def count(self) -> int:
        rows = self.object_list.order_by()
        plan = rows.explain(format="json")  # empty when Django knows that nothing can match
        guess: int = json.loads(plan)[0]["Plan"]["Plan Rows"] if plan else 0
        counted = rows[: self.exact_up_to + 1].count() if guess <= 10 * self.exact_up_to else guess
        return counted if counted <= self.exact_up_to else Estimate(max(guess, counted))

    def page(self, number: int | str) -> paginator.Page[Any]:
        """Return a page; on an estimate, a next one is offered while a row is left for it, whatever the estimate."""
        if not isinstance(self.count, Estimate):
            return super().page(number)
        number, deepest = int(number), 100 * self.exact_up_to // self.per_page
        bottom = (number - 1) * self.per_page
        rows = list(self.object_list[bottom : bottom + self.per_page + 1]) if 1 <= number <= deepest else []
        if not rows:
            raise paginator.EmptyPage(self.error_messages["no_results"])
        if len(rows) > self.per_page:
            self.num_pages = min(deepest, max(self.exact_up_to // self.per_page, number + 1))
        else:
            self.num_pages, self.count = number, bottom + len(rows)
        return paginator.Page(rows[: self.per_page], number, self)

    def get_elided_page_range(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from super().get_elided_page_range(*args, **kwargs)
        if isinstance(self.count, Estimate):
            yield self.ELLIPSIS


class Periods(models.QuerySet[Any]):
    """Finds the years, months or days that hold rows by stepping through the column's index, not reading it."""

    def datetimes(self, field_name: str, kind: str, *args: Any, **kwargs: Any) -> Any:
        def start(of: datetime) -> datetime:
            return datetime(of.year, 1 if kind == "year" else of.month, of.day if kind == "day" else 1)

        found: list[datetime] = []
        rows = self.order_by(field_name).values_list(field_name, flat=True)
        row = rows.exclude(**{field_name: None}).first()
        while row is not None:
            found.append(start(timezone.make_naive(row)))
            if found[-1].year == MAXYEAR:
                break
            following = start(found[-1] + timedelta(days={"year": 366, "month": 31, "day": 1}[kind]))
            row = rows.filter(**{f"{field_name}__gte": timezone.make_aware(following)}).first()
        return found


class ChangeList(main.ChangeList):
    """Asks for the dates of all rows, not of the filtered ones, whose first may be far from the start of the index."""

    def apply_select_related(self, qs: models.QuerySet[Any]) -> models.QuerySet[Any]:
        """Fetch related rows once the page is known: a join would also be made for the rows that OFFSET skips."""
        return qs.prefetch_related(*{field.name for field in relations(self.model)}.intersection(self.list_display))

    def get_results(self, request: HttpRequest) -> None:
        try:
            super().get_results(request)
        except DataError as error:  # such as a value that a native enum does not have
            raise IncorrectLookupParameters(error) from error
        self.result_count = self.paginator.count  # the last page knows better than the estimate
        if not self.query and not self.get_filters_params():
            self.full_result_count = self.result_count  # so that the search form does not offer to show all
        if self.date_hierarchy:
            lookups: dict[str, Any] = self.get_filters(request)[2]
            dates = {name: lookups[name] for name in lookups if name.startswith(f"{self.date_hierarchy}__")}
            self.queryset = Periods(self.model).filter(build_q_object_from_lookup_parameters(dates))


class DatabaseDefaults(BaseModelAdmin):  # type: ignore[type-arg]
    """Form fields which start with the database's default, and of which an empty one is NULL; no select of all rows."""

    formfield_overrides = {
        models.JSONField: {"encoder": lambda **options: json.JSONEncoder(**{**options, "indent": 2})}
    }

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        default = db_field.db_default
        if isinstance(db_field, models.DateTimeField) and isinstance(default, models.Func):
            kwargs["initial"] = timezone.now
        elif default is not models.NOT_PROVIDED and not hasattr(default, "resolve_expression"):
            kwargs["initial"] = default
        if isinstance(db_field, models.TextField) and db_field.null:
            kwargs["empty_value"] = None
        if db_field.name.endswith("_url"):
            kwargs["widget"] = AdminTextInputWidget
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def get_autocomplete_fields(self, request: HttpRequest) -> list[str]:
        return [field.name for field in relations(self.model)]


class TableAdmin(DatabaseDefaults, admin.ModelAdmin):  # type: ignore[type-arg]
    """A page for a table. What is named in ``shown`` is read-only on a row's page, and not asked for in a new row."""

    paginator = Paginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    ordering = ("pk",)
    shown: ClassVar[tuple[str, ...]] = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ChangeList

    def get_exclude(self, request: HttpRequest, obj: Any = None) -> Any:
        return [*(super().get_exclude(request, obj) or ()), *(() if obj else self.shown)]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        filled = [field.name for field in self.opts.fields if field.primary_key or not field.editable]
        return [*super().get_readonly_fields(request, obj), *((*self.shown, *filled) if obj else ())]

    def get_search_results(self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str) -> Any:
        return super().get_search_results(
            request, queryset, search_term.replace("\0", "")
        )  # PostgreSQL has no such text


class BigTableAdmin(TableAdmin):
    """A table of millions of rows: it is searched by exact values of indexed columns, and sorted by an index only.

    ``search_fields`` names the columns: ``id``, or ``user__email`` for the rows of the user with that address.
    """

    actions_selection_counter = False  # it would offer to select all rows for one action
    sortable_by: ClassVar[tuple[str, ...]] = ()

    def get_search_results(self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str) -> Any:
        term = search_term.replace("\0", "").strip()
        return (queryset.filter(self.matching(term)) if term else queryset), False

    def matching(self, term: str) -> models.Q:
        """Look related rows up first, so that one table's indexes answer the whole condition (a BitmapOr)."""
        found = models.Q(pk__in=[])
        for name in map(str, self.search_fields):
            relation, _, column = name.rpartition("__")
            model = self.model._meta.get_field(relation).related_model if relation else self.model
            with suppress(ValidationError):  # not a value of this column, as text is none of a UUID's
                values = {model._meta.get_field(column).to_python(text) for text in (term, term.lower())}
                match = models.Q(**{f"{column}__in": values})
                if relation:
                    match = models.Q(**{f"{relation}__in": list(model._base_manager.filter(match)[:100])})
                found |= match
        return found


def rows_of(queryset: models.QuerySet[Any], *columns: str, limit: int = 100) -> SafeString:
    """Show rows of a table that has no page of its own, because its primary key is composite."""
    rows, fields = list(queryset[: limit + 1]), [queryset.model._meta.get_field(name) for name in columns]

    def cell(row: models.Model, field: Any) -> Any:
        value = getattr(row, field.name)
        if not field.is_relation:
            return display_for_field(value, field, "-")
        url = reverse(f"admin:{field.related_model._meta.label_lower.replace('.', '_')}_change", args=[value.pk])
        return format_html('<a href="{}">{}</a>', url, value)

    cells = [[cell(row, field) for field in fields] for row in rows[:limit]]
    return render_to_string("admin/rows.html", {"fields": fields, "rows": cells, "more": len(rows) > limit})
