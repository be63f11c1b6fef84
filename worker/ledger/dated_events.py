"""Which events does a history hold? Those of producers, each with `at`: when it is posted."""

from collections.abc import Collection
from typing import Annotated

from pydantic import Field, TypeAdapter

from worker.events import EventInvalid, GrantEvent, RevokeEvent, Time, UsageEvent, parse_as


class DatedUsage(UsageEvent):
    """A usage. `occurred_at` defaults to `at`."""

    at: Time


class DatedGrant(GrantEvent):
    """A grant."""

    at: Time


class DatedRevoke(RevokeEvent):
    """A revoke."""

    at: Time


DatedEvent = DatedUsage | DatedGrant | DatedRevoke
DATED_EVENT: TypeAdapter[DatedEvent] = TypeAdapter(Annotated[DatedEvent, Field(discriminator="type")])


def parse_dated_event(raw: bytes, usage_kinds: Collection[str]) -> DatedEvent:
    """Return the event in the JSON `raw`. Raises EventTooLarge, EventUndecodable or EventInvalid."""
    try:
        return parse_as(DATED_EVENT, raw, usage_kinds)
    except EventInvalid as error:
        if "type" in error.fields:  # `settle` is not one of them: starts and ends are posted by themselves
            error.fields["type"] = "must be one of usage, grant, revoke"
        raise
