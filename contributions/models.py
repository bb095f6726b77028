"""What did people do, how is it proven and verified, and which events tell the Markov engine?"""

from typing import Any

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from accounts.models import Record, User
from tasks.models import Task


class NativeEnumField(models.CharField):  # type: ignore[type-arg]
    """Text in a column of an enum type, which a separate migration creates.

    Args:
        enum: the type's name in PostgreSQL (https://www.postgresql.org/docs/current/datatype-enum.html).
    """

    def __init__(self, *args: Any, enum: str, **kwargs: Any) -> None:
        self.enum = enum
        super().__init__(*args, **kwargs)

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return self.enum

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {**kwargs, "enum": self.enum}


class Contribution(Record):
    class Type(models.TextChoices):
        TASK_COMPLETION = "task_completion"
        CODE_REVIEW = "code_review"
        DOCUMENTATION = "documentation"
        MENTORING = "mentoring"
        EVENT_ORGANIZATION = "event_organization"
        COMMUNITY_SERVICE = "community_service"
        CUSTOM = "custom"

    class VerificationStatus(models.TextChoices):
        PENDING = "pending"
        VERIFIED = "verified"
        REJECTED = "rejected"

    user = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="contributions")
    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, db_index=False, related_name="contributions")
    contribution_type = NativeEnumField(enum="contribution_type", choices=Type, db_default=Type.TASK_COMPLETION)
    title = models.CharField(max_length=200)
    description = models.TextField(null=True, blank=True)
    evidence_url = models.TextField(null=True, blank=True)
    verification_status = models.CharField(
        max_length=20, choices=VerificationStatus, db_default=VerificationStatus.PENDING
    )
    markov_contribution_id = models.CharField(max_length=100, null=True, blank=True)
    metadata = models.JSONField(null=True, blank=True)

    class Meta:
        db_table = "contributions"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(verification_status__in=["pending", "verified", "rejected"]),
                name="check_verification_status",
            ),
            models.UniqueConstraint(fields=["markov_contribution_id"], name="idx_contributions_markov_id"),
        ]
        indexes = [
            models.Index(fields=["user", "verification_status"], name="idx_contributions_user_status"),
            models.Index(fields=["user", "-created_at"], name="idx_contributions_user_recent"),
            models.Index(fields=["task"], name="idx_contributions_task"),
            models.Index(fields=["contribution_type"], name="idx_contributions_type"),
            models.Index(fields=["verification_status"], name="idx_contributions_status"),
            models.Index(fields=["-created_at"], name="idx_contributions_created"),
            GinIndex(fields=["metadata"], name="idx_contributions_metadata"),
        ]

    def __str__(self) -> str:
        return self.title


class Evidence(Record):
    class Type(models.TextChoices):
        PHOTO_WITH_TIMESTAMP = "photo_with_timestamp"
        GPS_VERIFICATION = "gps_verification", "GPS verification"
        WITNESS_ATTESTATION = "witness_attestation"

    contribution = models.ForeignKey(Contribution, models.CASCADE, db_index=False, related_name="evidence")
    evidence_type = models.CharField(max_length=50, choices=Type)
    file_url = models.TextField()
    media_hash = models.CharField(max_length=128, null=True, blank=True, help_text="SHA-256 of the file, in hex.")
    timestamp = models.DateTimeField()
    latitude = models.DecimalField(max_digits=10, decimal_places=8, null=True, blank=True)
    longitude = models.DecimalField(max_digits=11, decimal_places=8, null=True, blank=True)
    metadata = models.JSONField(null=True, blank=True)

    class Meta:
        db_table = "evidence"
        verbose_name_plural = "evidence"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(
                    evidence_type__in=["photo_with_timestamp", "gps_verification", "witness_attestation"]
                ),
                name="check_evidence_type",
            ),
            models.CheckConstraint(condition=models.Q(latitude__range=(-90, 90)), name="check_latitude"),
            models.CheckConstraint(condition=models.Q(longitude__range=(-180, 180)), name="check_longitude"),
        ]
        indexes = [
            models.Index(fields=["contribution"], name="idx_evidence_contribution"),
            models.Index(fields=["evidence_type"], name="idx_evidence_type"),
            models.Index(fields=["media_hash"], name="idx_evidence_hash"),
            models.Index(fields=["-timestamp"], name="idx_evidence_timestamp"),
            models.Index(fields=["latitude", "longitude"], name="idx_evidence_location"),
            GinIndex(fields=["metadata"], name="idx_evidence_metadata"),
        ]

    def __str__(self) -> str:
        return f"{self.get_evidence_type_display()} of {self.timestamp:%Y-%m-%d %H:%M}"


class Witness(Record):
    class Relationship(models.TextChoices):
        SUPERVISOR = "supervisor"
        PEER = "peer"
        BENEFICIARY = "beneficiary"
        OTHER = "other"

    evidence = models.ForeignKey(Evidence, models.CASCADE, db_index=False, related_name="witnesses")
    witness_id = models.CharField(max_length=100, null=True, blank=True, help_text="A user's id, or one from outside.")
    witness_name = models.CharField(max_length=255)
    relationship = models.CharField(max_length=50, choices=Relationship, null=True, blank=True)
    statement = models.TextField(null=True, blank=True)

    class Meta:
        db_table = "witnesses"
        verbose_name_plural = "witnesses"
        indexes = [
            models.Index(fields=["evidence"], name="idx_witnesses_evidence"),
            models.Index(fields=["witness_id"], name="idx_witnesses_witness_id"),
        ]

    def __str__(self) -> str:
        return self.witness_name


class Verification(Record):
    class Outcome(models.TextChoices):
        APPROVED = "approved"
        REJECTED = "rejected"
        PENDING = "pending"

    contribution = models.ForeignKey(Contribution, models.CASCADE, db_index=False, related_name="verifications")
    verifier = models.ForeignKey(User, models.CASCADE, db_index=False, related_name="verifications")
    outcome = models.CharField(max_length=20, choices=Outcome)
    evidence_quality_score = models.DecimalField(max_digits=3, decimal_places=2, null=True, blank=True)
    notes = models.TextField(null=True, blank=True)

    class Meta:
        db_table = "verifications"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(outcome__in=["approved", "rejected", "pending"]), name="check_outcome"
            ),
            models.CheckConstraint(condition=models.Q(evidence_quality_score__range=(0, 1)), name="check_score"),
        ]
        indexes = [
            models.Index(fields=["contribution"], name="idx_verifications_contribution"),
            models.Index(fields=["verifier"], name="idx_verifications_verifier"),
            models.Index(fields=["outcome"], name="idx_verifications_outcome"),
            models.Index(fields=["-created_at"], name="idx_verifications_created"),
        ]

    def __str__(self) -> str:
        return f"{self.get_outcome_display()} on {self.created_at:%Y-%m-%d %H:%M}"


class WebhookType(models.TextChoices):
    CONTRIBUTION_CREATED = "contribution_created"
    VOUCH_SUBMITTED = "vouch_submitted"
    POR_EVIDENCE = "por_evidence", "Proof of reality evidence"


class WebhookEvent(Record):
    """An event on its way to the Markov engine."""

    class Status(models.TextChoices):
        PENDING = "pending"
        PROCESSING = "processing"
        DELIVERED = "delivered"
        FAILED = "failed"

    event_id = models.CharField(max_length=50)
    event_type = models.CharField(max_length=50, choices=WebhookType)
    payload = models.JSONField()
    status = models.CharField(max_length=20, choices=Status, null=True, blank=True, db_default=Status.PENDING)
    attempts = models.IntegerField(null=True, blank=True, db_default=0)
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    error_message = models.TextField(null=True, blank=True)

    class Meta:
        db_table = "webhook_events"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=["pending", "processing", "delivered", "failed"]),
                name="check_webhook_status",
            ),
            models.UniqueConstraint(fields=["event_id"], name="idx_webhook_events_event_id"),
        ]
        indexes = [
            models.Index(fields=["status"], name="idx_webhook_events_status"),
            models.Index(fields=["event_type"], name="idx_webhook_events_type"),
            models.Index(fields=["-created_at"], name="idx_webhook_events_created"),
        ]

    def __str__(self) -> str:
        return self.event_id


class WebhookFailure(Record):
    """A dead letter: an event that the Markov engine refused."""

    event_id = models.CharField(max_length=50, null=True, blank=True)
    event_type = models.CharField(max_length=50, choices=WebhookType)
    payload = models.JSONField()
    error_message = models.TextField(null=True, blank=True)
    status_code = models.IntegerField(null=True, blank=True)
    attempts = models.IntegerField(null=True, blank=True, db_default=0)
    last_attempt_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "webhook_failures"
        indexes = [
            models.Index(fields=["event_type"], name="idx_webhook_failures_type"),
            models.Index(fields=["-created_at"], name="idx_webhook_failures_created"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id}"
