"""Build events, add them to the streams, and read pages."""

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from worker.intake.streams import AWAKE, add, place


def usage(ref, org_id="org_a", **fields):
    return {"type": "usage", "org_id": org_id, "usage_ref": ref, "usage_kind": "ai_usage", "credits": 1} | fields


def grant(ref, org_id="org_a", **fields):
    return {"type": "grant", "org_id": org_id, "grant_ref": ref, "credits": 10, "source": "plan"} | fields


def send(client, *events):
    """Add events to the streams as a plain XADD would: no drain is woken."""
    add(client, [place(event, 8) for event in events])
    client.delete(AWAKE)


def read_page(base, secret, query="limit=100"):
    """Return the status of a page and the refs on it."""
    request = Request(f"{base}/credits/usage?{query}", headers={"Authorization": f"Bearer {secret}"})
    try:
        with urlopen(request, timeout=5) as response:
            return response.status, [item["usage_ref"] for item in json.load(response)["items"]]
    except HTTPError as error:
        return error.code, []
