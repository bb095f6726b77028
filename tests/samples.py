"""A few rows of every table, made through the ORM, for tests that only need some to be there."""

from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from uuid import uuid4

from accounts.models import Profile, ReputationCache, Skill, User, UserSkill, Vouch
from contributions.models import (
    Contribution,
    Evidence,
    Verification,
    WebhookEvent,
    WebhookFailure,
    WebhookType,
    Witness,
)
from tasks.models import Task, TaskAssignment, TaskSkill

NOON = datetime(2026, 3, 7, 12, tzinfo=UTC)


def make(count: int = 3, start: int = 0) -> SimpleNamespace:
    """Make ``count`` rows of every table, whose unique values end in a number from ``start`` on."""
    numbers = range(start, start + count)

    def many(model, row):
        # bulk_create does not read back a key that the database gives, and the next tables need it.
        key = {"id": uuid4} if hasattr(model, "id") else {}
        return model.objects.bulk_create(
            model(**{name: value() for name, value in key.items()}, **row(place, number))
            for place, number in enumerate(numbers)
        )

    users = many(User, lambda _, n: {"username": f"user{n}", "email": f"mail{n}@example.org", "password": "!"})
    skills = many(Skill, lambda _, n: {"name": f"skill{n}", "category": f"category{n % 2}"})
    tasks = many(
        Task,
        lambda i, n: {
            "title": f"task{n}",
            "creator": users[i],
            "assignee": users[i - 1],
            "status": Task.Status.values[n % 5],
            "difficulty": Task.Difficulty.values[n % 3],
            "metadata": {"tools": ["spade", "rake"], "people": n},
        },
    )
    contributions = many(
        Contribution,
        lambda i, n: {
            "user": users[i],
            "task": tasks[i],
            "title": f"contribution{n}",
            "contribution_type": Contribution.Type.values[n % 7],
            "verification_status": Contribution.VerificationStatus.values[n % 3],
            "markov_contribution_id": f"markov:contribution{n}",
            "metadata": {"hours": n},
        },
    )
    evidence = many(
        Evidence,
        lambda i, n: {
            "contribution": contributions[i],
            "evidence_type": Evidence.Type.values[n % 3],
            "file_url": f"https://files.example.org/{n}",
            "media_hash": f"{n:064x}",
            "timestamp": NOON,
            "latitude": Decimal("-6.20876340"),
            "longitude": Decimal("106.84559900"),
        },
    )
    return SimpleNamespace(
        user=users,
        skill=skills,
        task=tasks,
        contribution=contributions,
        evidence=evidence,
        userskill=many(UserSkill, lambda i, n: {"user": users[i], "skill": skills[i], "endorsements_count": n}),
        taskskill=many(TaskSkill, lambda i, n: {"task": tasks[i], "skill": skills[i]}),
        profile=many(Profile, lambda i, n: {"user": users[i], "location": f"village{n}"}),
        reputationcache=many(
            ReputationCache,
            lambda i, n: {"user": users[i], "reputation_score": Decimal(n), "tier": f"tier{n}", "cached_at": NOON},
        ),
        vouch=many(
            Vouch,
            lambda i, n: {
                "voucher": users[i],
                "vouchee": users[i - 1],
                "skill": skills[i],
                "weight_hint": Vouch.Weight.values[n % 3],
                "markov_vouch_id": f"markov:vouch{n}",
            },
        ),
        taskassignment=many(
            TaskAssignment,
            lambda i, n: {
                "task": tasks[i],
                "user": users[i],
                "assigned_by": users[i - 1],
                "assigned_at": NOON,
                "status": TaskAssignment.Status.values[n % 3],
            },
        ),
        witness=many(
            Witness,
            lambda i, n: {
                "evidence": evidence[i],
                "witness_name": f"witness{n}",
                "witness_id": f"outside:{n}",
                "relationship": Witness.Relationship.values[n % 4],
            },
        ),
        verification=many(
            Verification,
            lambda i, n: {
                "contribution": contributions[i],
                "verifier": users[i - 1],
                "outcome": Verification.Outcome.values[n % 3],
            },
        ),
        webhookevent=many(
            WebhookEvent,
            lambda i, n: {
                "event_id": f"event{n}",
                "event_type": WebhookType.values[n % 3],
                "payload": {"contribution": str(contributions[i].pk)},
                "status": WebhookEvent.Status.values[n % 4],
            },
        ),
        webhookfailure=many(
            WebhookFailure,
            lambda _, n: {"event_id": f"failed{n}", "event_type": WebhookType.values[n % 3], "payload": {"number": n}},
        ),
    )
