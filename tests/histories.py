"""The posting histories that every implementation of the rules must reproduce."""

import json
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

from feeds.movement import Movement
from feeds.page import count_feeds
from worker.ledger.posting import Organisation, Terms

HISTORIES = json.loads((Path(__file__).parent / "vectors" / "posting.json").read_text())
NAMES = [history["name"] for history in HISTORIES]
USAGE_NUMBERS = {"ai_usage": 0, "tm_usage": 1}


def terms(now: datetime, grace_s: int = 0) -> Terms:
    ids = count(1)
    return Terms(now, timedelta(seconds=grace_s), USAGE_NUMBERS, lambda: UUID(int=next(ids)))


def organisation(org_id: str = "org_a") -> Organisation:
    return Organisation(org_id, [0] * count_feeds(list(USAGE_NUMBERS)))


def show(movement: Movement, grant_refs: dict[int, str]) -> dict[str, Any]:
    """Return a movement in the words of the histories."""
    line: dict[str, Any] = {
        "kind": movement.kind.value,
        "credits": movement.credits,
        "usage_kind": movement.usage_kind,
        "usage_ref": movement.usage_ref,
    }
    if movement.draws:
        line["draws"] = [[grant_refs[grant_no], drawn] for grant_no, drawn in movement.draws]
    return line
