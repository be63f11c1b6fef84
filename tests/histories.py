"""The histories of events, with the movements that the rules must cause."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from feeds.movement import Movement
from feeds.page import count_feeds
from worker.ledger.hash_chain import initial_hash
from worker.ledger.organisation import Organisation, Terms

HISTORIES = json.loads((Path(__file__).parent / "vectors" / "posting.json").read_text())
NAMES = [history["name"] for history in HISTORIES]
USAGE_NUMBERS = {"ai_usage": 0, "tm_usage": 1}


def terms(now: datetime, grace_s: int = 0) -> Terms:
    """Return the terms of a batch at a given time."""
    return Terms(now, timedelta(seconds=grace_s), USAGE_NUMBERS)


def organisation(org_id: str = "org_a") -> Organisation:
    """Return an organisation without movements."""
    feeds = count_feeds(list(USAGE_NUMBERS))
    return Organisation(org_id, [0] * feeds, [0] * feeds, initial_hash(org_id))


def describe(movement: Movement, grant_refs: dict[int, str]) -> dict[str, Any]:
    """Return a movement as the histories write it, given the refs of grants by their numbers."""
    described: dict[str, Any] = {
        "kind": movement.kind.value,
        "credits": movement.credits,
        "usage_kind": movement.usage_kind,
        "usage_ref": movement.usage_ref,
    }
    if movement.draws:
        described["draws"] = [[grant_refs[grant_no], drawn] for grant_no, drawn in movement.draws]
    return described
