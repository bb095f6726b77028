"""What do the admin's pages share? Lists that stay fast at ten million rows, and forms with database defaults.

This module knows no model of the apps.
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
admin.site.site_url = None  # the site is the admin


def relations(model: type[models.Model]) -> list[Any]:
    return [field for field in model._meta.fields if field.is_relation]


class Estimate(int):
    """The planner's estimate of a number of rows, printed as an estimate."""

    def __str__(self) -> str:
        return f"about {round(self, 3 - len(str(int(self)))):,}"


class Paginator(paginator.Paginator):  # type: ignore[type-arg]
    """Counts up to ``exact_up_to`` rows exactly; for more rows it takes the planner's estimate.

    The estimate applies the filters and, unlike ``pg_class.reltuples``, covers a table that was never analyzed. An
    estimate of up to ten times the limit is checked by counting up to the limit. Pages end at a hundred times the
    limit, because OFFSET reads the rows that it skips: date, filter, search or reverse order find the rows after that.
    """

    object_list: models.QuerySet[Any]
    exact_up_to = 10_000

    @cached_property
    def count(self) -> int:
        rows = self.object_list.order_by()
        plan = rows.explain(format="json")  # empty if Django knows that no row can match
        guess: int = json.loads(plan)[0]["Plan"]["Plan Rows"] if plan else 0
        counted = rows[: self.exact_up_to + 1].count() if guess <= 10 * self.exact_up_to else guess
        return counted if counted <= self.exact_up_to else Estimate(max(guess, counted))

    def page(self, number: int | str) -> paginator.Page[Any]:
        """Return a page; with an estimate, offer a next page only if a row is left for it."""
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
    """Finds the years, months or days with rows by a few index look-ups, without reading the whole index."""

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
    """Shows the dates of all rows: the first of the filtered rows may be far from the start of the index."""

    def apply_select_related(self, qs: models.QuerySet[Any]) -> models.QuerySet[Any]:
        """Fetch related rows for the page only: a join would include the rows that OFFSET skips."""
        return qs.prefetch_related(*{field.name for field in relations(self.model)}.intersection(self.list_display))

    def get_results(self, request: HttpRequest) -> None:
        try:
            super().get_results(request)
        except DataError as error:  # such as a value that a native enum does not have
            raise IncorrectLookupParameters(error) from error
        self.result_count = self.paginator.count  # the last page corrects the estimate
        if not self.query and not self.get_filters_params():
            self.full_result_count = self.result_count  # the search form then offers no "show all"
        if self.date_hierarchy:
            lookups: dict[str, Any] = self.get_filters(request)[2]
            dates = {name: lookups[name] for name in lookups if name.startswith(f"{self.date_hierarchy}__")}
            self.queryset = Periods(self.model).filter(build_q_object_from_lookup_parameters(dates))


class DatabaseDefaults(BaseModelAdmin):  # type: ignore[type-arg]
    """Form fields that start with the database default, save an empty text as NULL, and list no related table."""

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
    """A page for a table. The fields in ``shown`` are read-only, and absent from the form of a new row."""

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
    """A table of millions of rows: searched by exact values of indexed columns, and sorted only by an index.

    ``search_fields`` names the columns: ``id``, or ``user__email`` for the rows of the user with that address.
    """

    actions_selection_counter = False  # it would offer an action on all rows
    sortable_by: ClassVar[tuple[str, ...]] = ()

    def get_search_results(self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str) -> Any:
        term = search_term.replace("\0", "").strip()
        return (queryset.filter(self.matching(term)) if term else queryset), False

    def matching(self, term: str) -> models.Q:
        """Return the condition; related rows are looked up first, so that one BitmapOr of indexes answers it."""
        found = models.Q(pk__in=[])
        for name in map(str, self.search_fields):
            relation, _, column = name.rpartition("__")
            model = self.model._meta.get_field(relation).related_model if relation else self.model
            with suppress(ValidationError):  # no value of this column, such as text for a UUID
                values = {model._meta.get_field(column).to_python(text) for text in (term, term.lower())}
                match = models.Q(**{f"{column}__in": values})
                if relation:
                    match = models.Q(**{f"{relation}__in": list(model._base_manager.filter(match)[:100])})
                found |= match
        return found


def rows_of(queryset: models.QuerySet[Any], *columns: str, limit: int = 100) -> SafeString:
    """Return a table of rows of a model without an admin page: its primary key is composite."""
    rows, fields = list(queryset[: limit + 1]), [queryset.model._meta.get_field(name) for name in columns]

    def cell(row: models.Model, field: Any) -> Any:
        value = getattr(row, field.name)
        if not field.is_relation:
            return display_for_field(value, field, "-")
        url = reverse(f"admin:{field.related_model._meta.label_lower.replace('.', '_')}_change", args=[value.pk])
        return format_html('<a href="{}">{}</a>', url, value)

    cells = [[cell(row, field) for field in fields] for row in rows[:limit]]
    return render_to_string("admin/rows.html", {"fields": fields, "rows": cells, "more": len(rows) > limit})
