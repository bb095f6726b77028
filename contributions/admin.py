"""Which admin pages show contributions, their proof and their events? ``gotong_royong.admin`` has their base."""

from django.contrib import admin

from contributions.models import Contribution, Evidence, Verification, WebhookEvent, WebhookFailure, Witness
from gotong_royong.admin import BigTableAdmin


@admin.register(Contribution)
class ContributionAdmin(BigTableAdmin):
    list_display = ("title", "user", "contribution_type", "verification_status", "task", "created_at")
    list_filter = ("verification_status", "contribution_type")
    search_fields = ("id", "markov_contribution_id", "task", "user__username", "user__email")
    search_help_text = "A whole id, Markov id or task's id, or the user's whole username or email."
    date_hierarchy = "created_at"
    sortable_by = ("created_at",)
    ordering = ("-created_at",)
    shown = ("markov_contribution_id",)


@admin.register(Evidence)
class EvidenceAdmin(BigTableAdmin):
    list_display = ("__str__", "contribution", "evidence_type", "timestamp", "latitude", "longitude")
    list_filter = ("evidence_type",)
    search_fields = ("id", "media_hash", "contribution")
    search_help_text = "A whole id, media hash or contribution's id."
    date_hierarchy = "timestamp"
    sortable_by = ("timestamp",)
    ordering = ("-timestamp",)


@admin.register(Witness)
class WitnessAdmin(BigTableAdmin):
    list_display = ("witness_name", "relationship", "evidence", "witness_id", "created_at")
    list_filter = ("relationship",)
    search_fields = ("id", "witness_id", "evidence")
    search_help_text = "A whole id, witness id or evidence's id."


@admin.register(Verification)
class VerificationAdmin(BigTableAdmin):
    list_display = ("contribution", "verifier", "outcome", "evidence_quality_score", "created_at")
    list_filter = ("outcome",)
    search_fields = ("id", "contribution", "verifier__username", "verifier__email")
    search_help_text = "A whole id or contribution's id, or the verifier's whole username or email."
    date_hierarchy = "created_at"
    sortable_by = ("created_at",)
    ordering = ("-created_at",)


@admin.register(WebhookEvent)
class WebhookEventAdmin(BigTableAdmin):
    list_display = ("event_id", "event_type", "status", "attempts", "last_attempt_at", "created_at")
    list_filter = ("status", "event_type")
    search_fields = ("id", "event_id")
    search_help_text = "A whole id or event id."
    date_hierarchy = "created_at"
    sortable_by = ("event_id", "created_at")
    ordering = ("-created_at",)


@admin.register(WebhookFailure)
class WebhookFailureAdmin(BigTableAdmin):
    list_display = ("event_type", "event_id", "status_code", "attempts", "last_attempt_at", "created_at")
    list_filter = ("event_type",)
    search_fields = ("id", "event_id")
    search_help_text = "A whole id or event id."
    date_hierarchy = "created_at"
    sortable_by = ("created_at",)
    ordering = ("-created_at",)
