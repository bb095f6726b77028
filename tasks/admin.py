"""Which admin pages show tasks and their assignments? ``gotong_royong.admin`` has their base."""

from django.contrib import admin
from django.utils.safestring import SafeString

from gotong_royong.admin import BigTableAdmin, rows_of
from tasks.models import Task, TaskAssignment


@admin.register(Task)
class TaskAdmin(BigTableAdmin):
    list_display = ("title", "status", "difficulty", "creator", "assignee", "created_at", "completed_at")
    list_filter = ("status", "difficulty")
    search_fields = ("id", "creator__username", "creator__email", "assignee__username", "assignee__email")
    search_help_text = "A whole id, or the whole username or email of the creator or the assignee."
    date_hierarchy = "created_at"
    sortable_by = ("created_at",)
    ordering = ("-created_at",)
    shown = ("skills",)

    @admin.display
    def skills(self, task: Task) -> SafeString:
        return rows_of(task.skills.select_related("skill").order_by("skill__name"), "skill", "created_at")


@admin.register(TaskAssignment)
class TaskAssignmentAdmin(BigTableAdmin):
    list_display = ("task", "user", "status", "assigned_by", "assigned_at", "completed_at")
    list_filter = ("status",)
    search_fields = ("id", "task", "user__username", "user__email")
    search_help_text = "A whole id, the task's whole id, or the whole username or email of the assignee."
