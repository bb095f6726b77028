"""How do operators see and control backfills in the admin? Its pages edit no field."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views import main
from django.db import router
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.html import format_html
from django.utils.safestring import SafeString

from .backfills import control, ranges
from .backfills.control import Progress
from .exceptions import ZeroDowntimeError, counted
from .models import Backfill, BackfillRange
from .running import reports

Status = Backfill.Status
MOST_RANGES, MOST_SET_ASIDE = 20, 100  # that a page shows


def _action(name: str, description: str) -> Callable[..., HttpResponse | None]:
    """Return an admin action that carries out one of ``control.ACTIONS`` on the selected backfills."""

    @admin.action(description=description, permissions=["control"])
    def action(self: "BackfillAdmin", request: HttpRequest, queryset: QuerySet[Backfill]) -> HttpResponse | None:
        return self._control(request, queryset, name)

    return action


class ChangeList(main.ChangeList):
    """Reads the progress of all backfills of a page at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows: list[Backfill] = list(self.result_list)
        progress = control.progress_of(rows)
        for row in rows:
            vars(row)["progress"] = progress[row.pk]
        self.result_list = rows


@admin.register(Backfill)
class BackfillAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Users with the permission to change backfills can control them; the history of the row records each action."""

    list_display = ("name", "status", "how_far", "speed", "held_back")
    ordering = ("name",)
    actions = ["pause", "resume", "cancel", "retry"]
    change_form_template = "admin/zero_downtime/backfill/change_form.html"
    fieldsets = (
        (None, {"fields": ("status", "how_far", "speed", "held_back", "error")}),
        (
            "Details",
            {"fields": ("order", "sweep", "longest_batch", "created_at", "started_at", "finished_at", "verified_at")},
        ),
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_control_permission(request)

    def has_control_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("zero_downtime.change_backfill")

    def get_changelist(self, request: HttpRequest, **options: Any) -> type[ChangeList]:
        return ChangeList

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for _, fieldset in self.fieldsets for name in fieldset["fields"]]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **options: Any) -> HttpResponse:
        row: Backfill = context["original"]
        more = {
            "actions": control.actions(row) if self.has_control_permission(request) else (),
            "events": row.events.all()[:MOST_RANGES],
            "ranges": recently_worked_on(row)[:MOST_RANGES],
            "set_aside": row.set_aside.order_by("pk")[:MOST_SET_ASIDE],
            "not_shown": max(0, row.set_aside.count() - MOST_SET_ASIDE),
        }
        return super().render_change_form(request, context | more, *args, **options)

    @admin.display
    def how_far(self, row: Backfill) -> SafeString:
        progress = _progress(row)
        share, told = f"{progress.share:.3f}", f"{progress.share:.0%}, {counted(progress.rows, 'row')}"
        return format_html('<progress max="1" value="{}"></progress> {}', share, told)

    @admin.display
    def speed(self, row: Backfill) -> str:
        progress = _progress(row)
        told = [f"{progress.rate:,.0f} rows a second"] if progress.rate else []
        if row.status == Status.RUNNING:
            told.append(counted(progress.workers, "worker") if progress.workers else "no worker")
        if progress.remaining:
            told.append(f"about {reports.duration(progress.remaining)} left")
        return ", ".join(told) or "-"

    @admin.display
    def held_back(self, row: Backfill) -> str:
        return row.throttle or "-"

    @admin.display
    def longest_batch(self, row: Backfill) -> str:
        return f"{_progress(row).longest_batch:.2f} s"

    pause = _action("pause", "Pause after the current batch")
    resume = _action("resume", "Resume")
    cancel = _action("cancel", "Cancel; changed rows stay changed")
    retry = _action("retry", "Retry the rows that are still to do or set aside")

    def _control(self, request: HttpRequest, queryset: QuerySet[Backfill], action: str) -> HttpResponse | None:
        for row in queryset.using(router.db_for_write(Backfill)):
            try:
                # One click must not change all rows a second time.
                control.apply(row, action, f"{request.user.get_username()}, in the admin", all_again=False)
            except ZeroDowntimeError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.log_change(request, row, f"Made {row.status}.")
                self.message_user(request, f"The backfill {row} is {row.status}.", messages.SUCCESS)
        if "from_its_page" in request.POST and (only := queryset.first()):
            return redirect("admin:zero_downtime_backfill_change", only.pk)
        return None


def _progress(row: Backfill) -> Progress:
    """Return the progress, read once for a page."""
    if "progress" not in vars(row):
        vars(row)["progress"] = control.progress(row)
    progress: Progress = vars(row)["progress"]
    return progress


def recently_worked_on(row: Backfill) -> QuerySet[BackfillRange]:
    """Return the ranges that had batches, the latest first, each with ``at``: the time of its last batch.

    ``at`` is None for a range that a worker gave back unfinished.
    """
    last = Coalesce("finished_at", F("leased_until") - timedelta(seconds=ranges.LEASE))
    worked_on = row.ranges.filter(batches__gt=0).annotate(at=last)
    return worked_on.order_by(F("at").desc(nulls_first=True), "-sweep", "number")
