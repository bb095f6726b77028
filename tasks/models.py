"""What do people ask for, and who has taken it on?"""

from django.contrib.postgres.indexes import GinIndex
from django.db import models

from accounts.models import NOW, Created, Record, Skill, User, UUIDKey


class Task(Record):
    class Status(models.TextChoices):
        OPEN = "open"
        ASSIGNED = "assigned"
        IN_PROGRESS = "in_progress"
        COMPLETED = "completed"
        CANCELLED = "cancelled"

    class Difficulty(models.TextChoices):
        EASY = "easy"
        INTERMEDIATE = "intermediate"
        HARD = "hard"

    creator = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="tasks_created")
    assignee = models.ForeignKey(
        User, models.SET_NULL, null=True, blank=True, db_index=False, related_name="tasks_assigned"
    )
    title = models.CharField(max_length=200)
    description = models.TextField(null=True, blank=True)
    status = models.CharField(max_length=20, choices=Status, db_default=Status.OPEN)
    difficulty = models.CharField(max_length=20, choices=Difficulty, null=True, blank=True)
    location = models.CharField(max_length=255, null=True, blank=True)
    estimated_hours = models.DecimalField(max_digits=5, decimal_places=2, null=True, blank=True)
    metadata = models.JSONField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "tasks"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["open", "assigned", "in_progress", "completed", "cancelled"]),
                name="check_status",
            ),
            models.CheckConstraint(
                condition=models.Q(difficulty__in=["easy", "intermediate", "hard"]), name="check_difficulty"
            ),
        ]
        indexes = [
            models.Index(fields=["creator"], name="idx_tasks_creator"),
            models.Index(fields=["assignee"], name="idx_tasks_assignee"),
            models.Index(fields=["status"], name="idx_tasks_status"),
            models.Index(fields=["-created_at"], name="idx_tasks_created"),
            GinIndex(fields=["metadata"], name="idx_tasks_metadata"),
            models.Index(fields=["status"], condition=models.Q(status="open"), name="idx_tasks_open_skills"),
        ]

    def __str__(self) -> str:
        return self.title


class TaskSkill(Created):
    pk = models.CompositePrimaryKey("task_id", "skill_id")
    task = models.ForeignKey(Task, models.CASCADE, db_index=False, related_name="skills")
    skill = models.ForeignKey(Skill, models.CASCADE, db_index=False, related_name="tasks")

    class Meta:
        db_table = "task_skills"
        indexes = [models.Index(fields=["skill"], name="idx_task_skills_skill")]

    def __str__(self) -> str:
        return f"{self.skill_id} for {self.task_id}"


class TaskAssignment(UUIDKey):
    class Status(models.TextChoices):
        ACTIVE = "active"
        COMPLETED = "completed"
        REASSIGNED = "reassigned"

    task = models.ForeignKey(Task, models.CASCADE, db_index=False, related_name="assignments")
    user = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="assignments")
    assigned_by = models.ForeignKey(
        User, models.SET_NULL, null=True, blank=True, db_index=False, related_name="assignments_made"
    )
    assigned_at = models.DateTimeField(null=True, blank=True, db_default=NOW)
    completed_at = models.DateTimeField(null=True, blank=True)
    status = models.CharField(max_length=20, choices=Status, null=True, blank=True, db_default=Status.ACTIVE)

    class Meta:
        db_table = "task_assignments"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["active", "completed", "reassigned"]), name="check_assignment_status"
            )
        ]
        indexes = [
            models.Index(fields=["task"], name="idx_task_assignments_task"),
            models.Index(fields=["user"], name="idx_task_assignments_user"),
            models.Index(fields=["status"], name="idx_task_assignments_status"),
        ]

    def __str__(self) -> str:
        return f"{self.task_id} to {self.user_id}"
