"""What did each run do to this database? Run and Step are the ledger, which the engine writes and all others read.

A run is one command that changes the schema, a step is one migration in it, up or down. Which migrations are applied,
Django's own table says; here stands who applied them, when, and who had to wait for it.
"""

from datetime import timedelta
from typing import Any

from django.db import connections, models
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone


class Status(models.TextChoices):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    INTERRUPTED = "interrupted"
    DIED = "died"


TRANSITIONS = {
    Status.RUNNING: {
        Status.SUCCEEDED,  # every step did
        Status.FAILED,  # a step did, what came before it stays
        Status.ROLLED_BACK,  # a step failed, and those before it were undone
        Status.INTERRUPTED,  # Ctrl-C or SIGTERM
        Status.DIED,  # its process is gone and could not say why; the next run says so
    },
}


class Run(models.Model):
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

    def __str__(self) -> str:
        return f"run {self.pk} ({self.command})"

    @property
    def described(self) -> str:
        """Who runs what since when, for those who wait for it."""
        return f"{self} by {self.who}, process {self.process}, since {self.started_at:%Y-%m-%d %H:%M:%S} UTC"


class Step(models.Model):
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
        indexes = [models.Index(fields=["app", "name"], name="zero_downtime_step_migration")]

    def __str__(self) -> str:
        return f"{self.app}.{self.name} {self.direction}"


def finish(row: Run | Step, status: Status, **values: Any) -> None:
    """Write how a run or a step ended. Should that be interrupted, what is written first holds.

    Raises:
        ValueError: if it has ended already.
    """
    if status not in TRANSITIONS.get(Status(row.status), ()):
        raise ValueError(f"{row} is {row.status} and cannot become {status}.")
    values |= {"status": status, "finished_at": timezone.now()}
    type(row)._base_manager.using(row._state.db).filter(pk=row.pk, status=row.status).update(**values)
    for name, value in values.items():
        setattr(row, name, value)


def bury_the_dead(alias: str) -> list[Run]:
    """Mark the runs that never said how they ended. Hold the runner's lock, so that none of them lives.

    A step stands in django_migrations from the moment of its commit, also if it could not say so here.
    """
    dead = list(Run.objects.using(alias).filter(status=Status.RUNNING))
    for run in dead:
        finish(run, Status.DIED, error="The process ended without a word: it was killed, or its machine was.")
        for step in run.steps.using(alias).filter(status=Status.RUNNING):
            done = is_done(alias, (step.app, step.name), step.direction)
            finish(step, Status.SUCCEEDED if done else Status.DIED)
    return dead


def is_done(alias: str, key: tuple[str, str], direction: str) -> bool:
    """Whether django_migrations says that the step was committed, whatever became of who committed it."""
    return (key in MigrationRecorder(connections[alias]).applied_migrations()) is (direction == Step.Direction.UP)


def prune(alias: str, days: int) -> None:
    """Delete runs that started more than ``days`` days ago, and their steps."""
    Run.objects.using(alias).filter(started_at__lt=timezone.now() - timedelta(days=days)).delete()


# Without the right to use its schema or to read it, a table is as good as none.
READABLE = "SELECT coalesce(has_table_privilege(to_regclass(%s), 'SELECT'), false)"


def latest_steps(alias: str, *columns: str) -> dict[tuple[str, str], Any]:
    """Return the last successful step of each migration that has one; none where no ledger can be read.

    Args:
        columns: which attributes the steps shall have beside app, name and direction; times cost the most.
    """
    if connections[alias].vendor != "postgresql":
        return {}
    with connections[alias].cursor() as cursor:
        cursor.execute(READABLE, [Step._meta.db_table])
        if not cursor.fetchone()[0]:
            return {}
    succeeded = Step.objects.using(alias).filter(status=Status.SUCCEEDED).order_by("app", "name", "-pk")
    rows = succeeded.distinct("app", "name").values_list("app", "name", "direction", *columns, named=True)
    return {(step.app, step.name): step for step in rows}
