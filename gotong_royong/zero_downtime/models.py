"""What did each run and each backfill do to this database?

Runs, steps and effects are the ledger. A run is one command that changes the schema; a step is one migration in it, up
or down. Django's own table says which migrations are applied; the ledger says who applied them, when, and who waited.
"""

import getpass
import os
import socket
from typing import Any

from django.db import models

from .postgres.journal import Kind


class Status(models.TextChoices):
    """The status of a run or a step."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the steps before it stay
    ROLLED_BACK = "rolled_back"  # a step failed, and the steps before it were undone
    INTERRUPTED = "interrupted"  # by Ctrl-C or SIGTERM
    DIED = "died"  # its process was killed; the next run writes this


class Run(models.Model):
    """One command that changes the schema."""

    command = models.CharField(max_length=50)
    status = models.CharField(max_length=20, choices=Status, db_default=Status.RUNNING)
    who = models.CharField(max_length=255, help_text="The system user and the host.")
    process = models.IntegerField(help_text="The operating system's process id on that host.")
    revision = models.CharField(max_length=40, blank=True, db_default="", help_text="The git revision of the code.")
    backup = models.TextField(blank=True, db_default="", help_text="The backup taken before the first step.")
    error = models.TextField(blank=True, db_default="")
    started_at = models.DateTimeField(db_default=models.Func(function="now"))
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "zero_downtime_run"
        indexes = [
            models.Index(fields=["id"], condition=models.Q(status="running"), name="zero_downtime_run_running"),
        ]

    def __str__(self) -> str:
        return f"run {self.pk} ({self.command})"

    @property
    def described(self) -> str:
        """The run, who started it, and when."""
        return f"{self} by {self.who}, process {self.process}, since {self.started_at:%Y-%m-%d %H:%M:%S} UTC"


class Step(models.Model):
    """One migration of a run, up or down."""

    class Direction(models.TextChoices):
        UP = "up"
        DOWN = "down"

    run = models.ForeignKey(Run, models.CASCADE, related_name="steps")
    app = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    direction = models.CharField(max_length=4, choices=Direction)
    status = models.CharField(max_length=20, choices=Status, db_default=Status.RUNNING)
    faked = models.BooleanField(db_default=False)
    checksum = models.CharField(max_length=64, blank=True, db_default="", help_text="SHA-256 of the migration's file.")
    error = models.TextField(blank=True, db_default="")
    tries = models.IntegerField(db_default=0)
    lock_wait = models.FloatField(db_default=0.0, help_text="Seconds that its statements waited for locks.")
    longest_blocked = models.FloatField(
        db_default=0.0, help_text="Seconds that the longest waiting session waited for it."
    )
    total_blocked = models.FloatField(db_default=0.0, help_text="Seconds that all sessions together waited for it.")
    blocked_sessions = models.IntegerField(db_default=0)
    started_at = models.DateTimeField(db_default=models.Func(function="clock_timestamp"))
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "zero_downtime_step"
        indexes = [
            models.Index(fields=["app", "name", "id"], name="zero_downtime_step_latest"),
            models.Index(
                fields=["id"], condition=~models.Q(status=Status.SUCCEEDED), name="zero_downtime_step_unfinished"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.app}.{self.name} {self.direction}"


class Effect(models.Model):
    """What an operation of a step did to the database: an entry of the ``journal``."""

    step = models.ForeignKey(Step, models.CASCADE, related_name="effects")
    operation = models.IntegerField(help_text="Its number in the migration, from 1.")
    kind = models.CharField(max_length=10, choices=[(kind.value, kind.value) for kind in Kind])
    what = models.TextField(blank=True, db_default="", help_text="The statement, or the digest of the operation.")
    objects_named: "models.JSONField[Any, Any]" = models.JSONField(
        db_default=models.Value([], models.JSONField()), help_text="The kind, table and name of each that it concerns."
    )

    class Meta:
        db_table = "zero_downtime_effect"

    def __str__(self) -> str:
        return f"operation {self.operation} {self.kind} {self.what}".rstrip()


def whoami() -> str:
    """Return ``user@host`` for the ledger."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id may have no name; OSError since Python 3.13
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Backfill(models.Model):
    """A change of data that goes through a table in the background; an app's ``backfills.py`` declares it."""

    class Status(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        PAUSED = "paused"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELED = "canceled"

    TRANSITIONS = {
        Status.PENDING: {
            Status.RUNNING,  # a worker claims it
            Status.PAUSED,
            Status.FAILED,  # its declaration or its table no longer allows its order
            Status.CANCELED,
        },
        Status.RUNNING: {
            Status.PAUSED,  # within one batch of each worker
            Status.SUCCEEDED,  # the verification finds no row left to do
            Status.FAILED,  # it cannot go on, or rows are set aside
            Status.CANCELED,  # the rows that are done stay
        },
        Status.PAUSED: {
            Status.PENDING,  # resume: it goes on where it was
            Status.CANCELED,
        },
        Status.FAILED: {Status.PENDING},  # retry: the rows still to do, from the start if SQL can tell which
        Status.CANCELED: {Status.PENDING},  # retry
        Status.SUCCEEDED: {Status.PENDING},  # retry: new rows are to do
    }

    name = models.CharField(max_length=255, unique=True, help_text="The app and the declaration.")
    status = models.CharField(max_length=20, choices=Status, db_default=Status.PENDING)
    order = models.CharField(max_length=20, blank=True, db_default="", help_text="How it goes through the table.")
    sweep = models.IntegerField(db_default=0, help_text="How often it has begun to go through the table.")
    error = models.TextField(blank=True, db_default="")
    throttle = models.TextField(blank=True, db_default="", help_text="Why it is held back now, if it is.")
    created_at = models.DateTimeField(db_default=models.Func(function="now"))
    started_at = models.DateTimeField(null=True)
    verified_at = models.DateTimeField(null=True, help_text="When somebody looked and found no row left to do.")
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "zero_downtime_backfill"

    def __str__(self) -> str:
        return self.name


class BackfillRange(models.Model):
    """A part of a table, for one worker at a time. Number 0 of a sweep is the verification range.

    ``lower``, ``upper`` and ``cursor`` are blocks of the table or keys, as JSON; ``token`` rises with every claim.
    """

    backfill = models.ForeignKey(Backfill, models.CASCADE, related_name="ranges")
    sweep = models.IntegerField()
    number = models.IntegerField()
    partition = models.TextField(blank=True, db_default="", help_text="Of which table, where that is a partition.")
    lower: "models.JSONField[Any, Any]" = models.JSONField(null=True)
    upper: "models.JSONField[Any, Any]" = models.JSONField(null=True)
    cursor: "models.JSONField[Any, Any]" = models.JSONField(null=True, help_text="What comes before it is done.")
    share = models.FloatField(db_default=0.0, help_text="How much of the range is done, from 0 to 1.")
    rows_done = models.BigIntegerField(db_default=0)
    batches = models.IntegerField(db_default=0)
    longest_batch = models.FloatField(db_default=0.0, help_text="Seconds.")
    worker = models.CharField(max_length=255, blank=True, db_default="")
    backend = models.IntegerField(null=True, help_text="The server's process of the worker's session.")
    token = models.BigIntegerField(db_default=0)
    leased_until = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "zero_downtime_backfill_range"
        constraints = [
            models.UniqueConstraint(fields=["backfill", "sweep", "number"], name="zero_downtime_backfill_range_once")
        ]

    def __str__(self) -> str:
        return f"{self.backfill}, sweep {self.sweep}, range {self.number}"

    @property
    def place(self) -> str:
        """The part of the table, in words."""
        if self.number == 0:
            return "what was left to do"
        if isinstance(self.upper, int):
            return f"{self.partition} blocks {self.lower:,} to {self.upper:,}".lstrip()
        lower, upper = (", ".join(key) if key else None for key in (self.lower, self.upper))
        return " ".join(filter(None, ["keys", lower and f"after {lower}", upper and f"up to {upper}"]))


class SetAside(models.Model):
    """A row that a backfill could not change."""

    backfill = models.ForeignKey(Backfill, models.CASCADE, related_name="set_aside")
    key: "models.JSONField[Any, Any]" = models.JSONField(help_text="The values of its primary key, as text.")
    error = models.TextField()
    again = models.BooleanField(db_default=False, help_text="Whether it is to be tried again.")
    created_at = models.DateTimeField(db_default=models.Func(function="now"))

    class Meta:
        db_table = "zero_downtime_set_aside"
        constraints = [models.UniqueConstraint(fields=["backfill", "key"], name="zero_downtime_set_aside_once")]
        verbose_name_plural = "rows set aside"

    def __str__(self) -> str:
        return f"row {', '.join(map(str, self.key))}: {self.error}"


class BackfillEvent(models.Model):
    """Somebody paused, resumed, canceled or retried a backfill."""

    backfill = models.ForeignKey(Backfill, models.CASCADE, related_name="events")
    action = models.CharField(max_length=20)
    who = models.CharField(max_length=255, help_text="The system user and the host, or the user of the admin.")
    at = models.DateTimeField(db_default=models.Func(function="now"))

    class Meta:
        db_table = "zero_downtime_backfill_event"
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"{self.action} by {self.who} at {self.at:%Y-%m-%d %H:%M:%S} UTC"
