"""How do operators see and steer backfills in the admin? Nothing is edited here: what happens is written by workers."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from gotong_royong.zero_downtime import reports
from gotong_royong.zero_downtime.backfills import steering
from gotong_royong.zero_downtime.exceptions import BackfillRefused
from gotong_royong.zero_downtime.models import Backfill

Status = Backfill.Status


@admin.register(Backfill)
class BackfillAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Who may change backfills may pause, resume, cancel and retry them; each time stands in the history of the row."""

    list_display = ("name", "status", "how_far", "throttle", "started_at", "finished_at")
    list_filter = ("status",)
    search_fields = ("name",)
    ordering = ("name",)
    actions = ["pause", "resume", "cancel", "retry"]
    change_form_template = "admin/zero_downtime/backfill/change_form.html"
    fields = readonly_fields = (
        "name",
        "status",
        "how_far",
        "told",
        "throttle",
        "error",
        "order",
        "sweep",
        "created_at",
        "started_at",
        "verified_at",
        "finished_at",
        "at_work",
        "rows_set_aside",
    )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_steer_permission(request)

    def has_steer_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("zero_downtime.change_backfill")

    @admin.display
    def how_far(self, row: Backfill) -> SafeString:
        share = steering.progress(row).share
        return format_html('<progress max="1" value="{}"></progress> {}', f"{share:.3f}", f"{share:.0%}")

    @admin.display(description="in words")
    def told(self, row: Backfill) -> str:
        return reports.backfill_line(row, steering.progress(row))

    @admin.display
    def at_work(self, row: Backfill) -> SafeString:
        parts = row.ranges.filter(sweep=row.sweep, finished_at=None).exclude(leased_until=None).order_by("number")[:20]
        return _lines(f"range {part.number}, {part.share:.0%}, {part.batches} batches: {part.worker}" for part in parts)

    @admin.display
    def rows_set_aside(self, row: Backfill) -> SafeString:
        return _lines(str(aside) for aside in row.set_aside.order_by("pk")[:100])

    @admin.action(description="Pause, effective within one batch", permissions=["steer"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Backfill]) -> None:
        self._steer(request, queryset, lambda row: steering.become(row, Status.PAUSED))

    @admin.action(description="Resume", permissions=["steer"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Backfill]) -> None:
        self._steer(request, queryset, steering.resume)

    @admin.action(description="Cancel; what it has done stays", permissions=["steer"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Backfill]) -> None:
        self._steer(request, queryset, lambda row: steering.become(row, Status.CANCELED))

    @admin.action(description="Retry with the rows that are still to do", permissions=["steer"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Backfill]) -> None:
        self._steer(request, queryset, steering.retry)

    def _steer(self, request: HttpRequest, queryset: QuerySet[Backfill], action: Callable[[Backfill], None]) -> None:
        for row in queryset:
            try:
                action(row)
            except BackfillRefused as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.log_change(request, row, f"Made {row.status}.")
                self.message_user(request, f"The backfill {row} is {row.status}.", messages.SUCCESS)


def _lines(texts: Any) -> SafeString:
    return format_html_join("", "{}<br>", ((text,) for text in texts)) or format_html("{}", "-")
