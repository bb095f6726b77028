"""What is asked for in the demo, who does it, and how is that proven?"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from contributions.demo import words
from contributions.demo.dice import DAY, Dice, at
from contributions.demo.events import add_event
from contributions.demo.people import Person, Skills, another
from contributions.demo.tables import Rows

TASK_STATUSES = ("open",) * 4 + ("assigned",) * 2 + ("in_progress",) * 3 + ("completed",) * 9 + ("cancelled",) * 2
VERIFICATION_STATUSES = ("pending",) * 5 + ("verified",) * 13 + ("rejected",) * 2
EVIDENCE = {"photo_with_timestamp": "jpg", "gps_verification": "gpx", "witness_attestation": "pdf"}
EVIDENCE_TYPES = ("photo_with_timestamp",) * 5 + ("gps_verification",) * 3 + ("witness_attestation",) * 2


class Task(NamedTuple):
    """A task that somebody has begun to work on."""

    id: str
    title: str
    assignee: Person
    started: int
    completed: int | None


def add_tasks(rows: Rows, dice: Dice, people: Sequence[Person], skills: Skills) -> list[Task]:
    """Let ``people`` ask for five things each on average and give most of them to one of their own.

    Returns: the tasks on which work has begun.
    """
    begun, crafts = [], tuple(skills)
    for _ in range(5 * len(people)):
        id, creator, craft, status = dice.uuid(), dice.pick(people), dice.pick(crafts), dice.pick(TASK_STATUSES)
        created, title = dice.after(creator.joined), dice.pick(words.TRADES[craft].tasks)
        title = f"{title} in {creator.district}"
        assignee = completed = None
        if status in ("assigned", "in_progress", "completed"):
            assignee = another(dice, people, creator)
            assigned = dice.after(max(created, assignee.joined), 20 * DAY)
            if dice.random() < 0.1:
                former = another(dice, people, assignee)
                since = dice.after(max(created, former.joined), 20 * DAY)
                assigned = dice.after(max(since, assigned), 20 * DAY)
                rows["task_assignments"].append((dice.uuid(), id, former.id, creator.id, at(since), None, "reassigned"))
            if status == "completed":
                completed = dice.after(assigned, 30 * DAY)
            if status != "assigned":
                begun.append(Task(id, title, assignee, assigned, completed))
            giver = creator.id if dice.random() < 0.7 else None
            end = completed and at(completed)
            kind = "completed" if completed else "active"
            rows["task_assignments"].append((dice.uuid(), id, assignee.id, giver, at(assigned), end, kind))

        for skill in dice.some(skills[craft], 1, 3):
            rows["task_skills"].append((id, skill.id, at(created)))
        hours, helpers = 1 + int(dice.random() * 23) / 2, 2 + int(dice.random() * 9)
        plan = {"hours": f"{hours:g}", "helpers": helpers, "district": creator.district}
        metadata = None
        if dice.random() < 0.5:
            metadata = json.dumps(
                {"helpers": helpers, "tools": dice.some(words.TOOLS, 1, 3), "urgent": dice.random() < 0.1}
            )
        rows["tasks"].append(
            (
                id,
                creator.id,
                assignee and assignee.id,
                title,
                dice.pick(words.DETAILS).format_map(plan),
                status,
                dice.pick(("easy", "easy", "intermediate", "intermediate", "hard", None)),
                f"{creator.district}, {creator.city.name}",
                hours,
                metadata,
                at(created),
                completed and at(completed),
            )
        )
    return begun


def add_contributions(
    rows: Rows, dice: Dice, people: Sequence[Person], crowd: Sequence[Person], tasks: Sequence[Task]
) -> Counter[str]:
    """Let ``people`` do ten things each on average, mostly what their tasks asked for, and let ``crowd`` verify it.

    Returns: how many each of them did, by id.
    """
    done: Counter[str] = Counter()
    for number in range(10 * len(people)):
        id = dice.uuid()
        if tasks and dice.random() < 0.85:
            task = dice.pick(tasks)
            person = task.assignee if dice.random() < 0.9 else dice.pick(people)
            started, kind, title = max(task.started, person.joined), "task_completion", task.title
            created = dice.after(max(task.completed or started, person.joined), 5 * DAY)
            about: str | None = task.id
        else:
            person, about = dice.pick(people), None
            kind, title = dice.pick(words.WORK_TITLES)
            title = title.format(skill=dice.pick(person.skills).name, district=person.district, city=person.city.name)
            started = dice.after(person.joined)
            created = dice.after(started, 5 * DAY)
        done[person.id] += 1
        status = dice.pick(VERIFICATION_STATUSES)
        page = f"https://media.example.org/stories/{id}" if dice.random() < 0.3 else None
        markov = f"contribution_{dice.getrandbits(96):024x}" if status == "verified" else None
        metadata = None
        if dice.random() < 0.5:
            metadata = json.dumps({"hours": 1 + int(dice.random() * 23) / 2, "people_helped": int(dice.random() * 30)})
        text, when = dice.pick(words.REPORTS), at(created)
        rows["contributions"].append((id, person.id, about, kind, title, text, page, status, markov, metadata, when))
        if number % 10 == 0:
            add_event(rows, dice, "contribution_created", created, contribution=id, user=person.id)
        _add_evidence(rows, dice, id, person, people, started, created)
        _add_verifications(rows, dice, id, person, crowd, status, created)
    return done


def _add_evidence(
    rows: Rows, dice: Dice, contribution: str, person: Person, people: Sequence[Person], started: int, reported: int
) -> None:
    """Add one to three pieces of evidence, taken during the work, and for some of them a neighbor or two who saw it."""
    for _ in range(1 + int(dice.random() * 3)):
        id, kind = dice.uuid(), dice.pick(EVIDENCE_TYPES)
        url, digest = f"https://media.example.org/evidence/{id}.{EVIDENCE[kind]}", f"{dice.getrandbits(256):064x}"
        taken, created = dice.between(started, reported), dice.after(reported, 3_600)
        latitude = longitude = metadata = None
        if kind == "gps_verification" or dice.random() < 0.7:
            latitude = f"{person.city.latitude + dice.random() / 10 - 0.05:.8f}"
            longitude = f"{person.city.longitude + dice.random() / 10 - 0.05:.8f}"
        if kind == "gps_verification":
            metadata = json.dumps({"accuracy_m": 2 + int(dice.random() * 30), "satellites": 5 + int(dice.random() * 9)})
        rows["evidence"].append(
            (id, contribution, kind, url, digest, at(taken), latitude, longitude, metadata, at(created))
        )
        if len(rows["evidence"]) % 40 == 1:
            add_event(rows, dice, "por_evidence", created, evidence=id, contribution=contribution, media_hash=digest)
        if kind == "witness_attestation":
            for _ in range(1 + int(dice.random() * 1.2)):
                _add_witness(rows, dice, id, another(dice, people, person), created)


def _add_witness(rows: Rows, dice: Dice, evidence: str, neighbor: Person, reported: int) -> None:
    witness: str | None
    if dice.random() < 0.6:
        witness, name = neighbor.id, neighbor.name
    else:  # somebody who has no account
        witness = f"ktp-{dice.getrandbits(48):015d}" if dice.random() < 0.5 else None
        name = f"{dice.pick(words.OUTSIDERS)} {dice.pick(words.GIVEN_NAMES)}"
    relation = dice.pick(("peer", "peer", "beneficiary", "beneficiary", "supervisor", "other", None))
    said, when = dice.pick(words.STATEMENTS), at(dice.after(reported, 3 * DAY))
    rows["witnesses"].append((dice.uuid(), evidence, witness, name, relation, said, when))


def _add_verifications(
    rows: Rows, dice: Dice, contribution: str, person: Person, crowd: Sequence[Person], status: str, created: int
) -> None:
    """Add the verifications behind ``status``: one or two verdicts, or perhaps a pending one."""
    if status == "pending" and dice.random() < 0.5:
        return
    outcome = {"verified": "approved"}.get(status, status)
    seen: set[str] = set()
    for _ in range(1 if outcome == "pending" else 1 + int(dice.random() * 1.2)):
        verifier = another(dice, crowd, person)
        if verifier.id in seen:
            continue
        seen.add(verifier.id)
        score, note = None, None
        if outcome != "pending":
            score = f"{dice.random() / 2 + (0.5 if outcome == 'approved' else 0):.2f}"
            note = dice.pick(words.APPROVALS if outcome == "approved" else words.REJECTIONS)
        when = at(dice.after(max(created, verifier.joined), 14 * DAY))
        rows["verifications"].append((dice.uuid(), contribution, verifier.id, outcome, score, note, when))
