"""Which events do we accept?"""

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from feeds.identifiers import ORG_ID_PATTERN, REF_PATTERN

EVENT_BYTES = 64 * 1024
USAGE_KINDS = ("ai_usage", "tm_usage")
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,30})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
FIELDS_SHOWN = 20


class EventRefused(Exception):  # noqa: N818 -- what happened, in the contract's words
    """An event that cannot be posted; it becomes a dead letter. `fields` maps a field to what is wrong with it."""

    code = "unpostable"

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}


class EventUndecodable(EventRefused):
    """The bytes are no JSON. Mend the producer's encoder."""

    code = "undecodable"


class EventTooLarge(EventRefused):
    """More than 64 KiB. Send what the event needs alone."""

    code = "too_large"


class EventInvalid(EventRefused):
    """The JSON is not an event of ours. Its field errors say where."""

    code = "invalid_event"


def read_time(value: object) -> datetime:
    """Return an RFC 3339 string, or a datetime with an offset, in UTC."""
    if isinstance(value, str):
        if not RFC_3339.fullmatch(value):
            raise ValueError("must be an RFC 3339 time with an offset, like 2026-06-01T10:00:00Z")
        value = datetime.fromisoformat(value.upper())
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be an RFC 3339 string with an offset, like 2026-06-01T10:00:00Z")
    if not 2000 <= value.year <= 8999:
        raise ValueError("must be in the years 2000 to 8999")
    return value.astimezone(UTC)


OrgId = Annotated[str, StringConstraints(pattern=f"^{ORG_ID_PATTERN}$")]
Ref = Annotated[str, StringConstraints(pattern=f"^{REF_PATTERN}$")]
Time = Annotated[datetime, BeforeValidator(read_time)]
MOST_CREDITS = 10**12


class AnyEvent(BaseModel):
    """What all events share: exact types, nothing unknown, never changed."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    org_id: OrgId


class UsageEvent(AnyEvent):
    """Credits that a customer used. Without `occurred_at`: the earlier of when it was added and now."""

    type: Literal["usage"] = "usage"
    usage_ref: Ref
    usage_kind: str
    credits: Annotated[int, Field(ge=0, le=MOST_CREDITS)]
    occurred_at: Time | None = None


class GrantEvent(AnyEvent):
    """Credits given by a plan or a promotion; lower priority is drawn first."""

    type: Literal["grant"] = "grant"
    grant_ref: Ref
    credits: Annotated[int, Field(ge=1, le=MOST_CREDITS)]
    source: Literal["plan", "promotion"]
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    effective_at: Time | None = None
    expires_at: Time | None = None

    @field_validator("expires_at")
    @classmethod
    def end_after_start(cls, expires_at: datetime | None, info: ValidationInfo) -> datetime | None:
        """Refuse a grant that ends before it starts."""
        effective_at = info.data.get("effective_at")
        if expires_at and effective_at and expires_at <= effective_at:
            raise ValueError("must be after effective_at")
        return expires_at


class RevokeEvent(AnyEvent):
    """A grant that is clawed back; what was consumed stays consumed."""

    type: Literal["revoke"] = "revoke"
    grant_ref: Ref
    reason: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")] | None = None


class SettleEvent(AnyEvent):
    """A wish to post what the clock alone causes: starts and ends of grants."""

    type: Literal["settle"] = "settle"


Event = UsageEvent | GrantEvent | RevokeEvent | SettleEvent
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def parse_event(raw: bytes, usage_kinds: Collection[str] = USAGE_KINDS) -> Event:
    """Return the event that `raw` holds.

    Raises EventTooLarge, EventUndecodable or EventInvalid.
    """
    if len(raw) > EVENT_BYTES:
        raise EventTooLarge(f"an event has at most {EVENT_BYTES} bytes, this one has {len(raw)}")
    if not raw:
        raise EventUndecodable("the stream entry has no field `event`, or an empty one")
    try:
        event = EVENT.validate_json(raw)
    except ValidationError as error:
        raise explain(error) from None
    return known_kind(event, usage_kinds)


def check_event(event: Event | dict[str, Any], usage_kinds: Collection[str] = USAGE_KINDS) -> Event:
    """Return an event given as a model, or as a dictionary (times may be datetimes). Raises EventInvalid."""
    try:
        return known_kind(EVENT.validate_python(event), usage_kinds)
    except ValidationError as error:
        raise explain(error) from None


def known_kind(event: Event, usage_kinds: Collection[str]) -> Event:
    """Refuse a usage of a kind that the ledger does not know; the kinds are a setting."""
    if isinstance(event, UsageEvent) and event.usage_kind not in usage_kinds:
        raise EventInvalid(
            "the event is not valid: usage_kind", {"usage_kind": f"must be one of {', '.join(usage_kinds)}"}
        )
    return event


def explain(error: ValidationError) -> EventRefused:
    """Return what pydantic found in our words: no input is repeated, so that nothing secret is logged."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return EventUndecodable(found[0]["msg"])
    fields = dict(explain_field(problem) for problem in found[:FIELDS_SHOWN])
    return EventInvalid(f"the event is not valid: {', '.join(fields)}", fields)


def explain_field(problem: Any) -> tuple[str, str]:
    """Return the name of the field at fault (`type` where no kind of event was recognised) and what is wrong."""
    if problem["type"].startswith("union_tag"):
        return "type", "must be one of usage, grant, revoke, settle"
    path = ".".join(str(part) for part in problem["loc"][1:]) or "event"
    return path.encode("unicode_escape").decode()[:128], problem["msg"].removeprefix("Value error, ")
