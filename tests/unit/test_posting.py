"""The rules of credits reproduce every history, without a database."""

import json
from datetime import datetime

import pytest

from tests.histories import HISTORIES, NAMES, describe, organisation, terms
from worker.events import EventRefused, parse_event
from worker.ledger.posting import post


@pytest.mark.parametrize("history", HISTORIES, ids=NAMES)
def test_every_step_of_a_history_causes_its_movements(history):
    organisations = {}
    for step in history["steps"]:
        event = parse_event(json.dumps(step["event"]).encode())
        state = organisations.setdefault(event.org_id, organisation(event.org_id))
        now = datetime.fromisoformat(step["now"])
        before, dead = len(state.movements), None
        try:
            post(event, state, terms(now, history["expiry_grace_s"]), added_at=now)
        except EventRefused as refused:
            dead = refused.code
        refs = {grant.grant_no: grant.grant_ref for grant in state.grants.values()}
        assert [describe(movement, refs) for movement in state.movements[before:]] == step["writes"]
        assert dead == step.get("dead")
    remaining = {
        org_id: {grant.grant_ref: grant.remaining for grant in state.grants.values() if grant.remaining}
        for org_id, state in organisations.items()
    }
    assert remaining == history["remaining"]
