"""Which events were sent to the Markov engine, and which did it refuse?"""

import json

from contributions.demo import words
from contributions.demo.dice import DAY, Dice, at
from contributions.demo.tables import Rows

STATUSES = ("delivered",) * 17 + ("pending", "pending", "processing")
MOST_ATTEMPTS = 5


def add_event(rows: Rows, dice: Dice, kind: str, created: int, **content: object) -> None:
    """Add an event of the outbox, and a dead letter when it failed for good, as the first of each neighborhood does."""
    event = f"evt_{dice.getrandbits(96):024x}"
    payload = json.dumps({"event_id": event, "event_type": kind, "timestamp": at(created), **content})
    failed = not rows["webhook_events"] or dice.random() < 0.02
    status = "failed" if failed else dice.pick(STATUSES)
    attempts = {"failed": MOST_ATTEMPTS, "pending": 0, "processing": 1}.get(status, 1 + int(dice.random() * 1.2))
    last = None if status == "pending" else dice.after(created, DAY)
    error, code = dice.pick(words.DEAD_LETTERS) if failed else (None, None)
    tried = last and at(last)
    rows["webhook_events"].append((dice.uuid(), event, kind, payload, status, attempts, tried, error, at(created)))
    if failed:
        rows["webhook_failures"].append((dice.uuid(), event, kind, payload, error, code, attempts, tried, tried))
