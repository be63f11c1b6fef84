"""Which events are accepted, and how are they parsed?"""

import json
from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
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

from feeds.identifiers import ORG_ID_PATTERN, REF_PATTERN, USAGE_KINDS_DEFAULT
from feeds.times import parse_time

EVENT_BYTES = 64 * 1024
FIELDS_REPORTED_MAX = 20
WHOLE_NUMBER = "must be a whole number, written like 5: without quotes, point or exponent"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventRefused(Exception):  # noqa: N818 -- it names what happened to the event
    """An event cannot be posted and becomes a dead letter. `fields` maps each wrong field to what is wrong with it."""

    code = "unpostable"

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields or {}


class EventUndecodable(EventRefused):
    """The bytes are not JSON. Fix the producer's encoder."""

    code = "undecodable"


class EventTooLarge(EventRefused):
    """The event has more than 64 KiB. Send only the fields that it needs."""

    code = "too_large"


class EventInvalid(EventRefused):
    """The JSON is not a valid event. `fields` says why. Fix the producer."""

    code = "invalid_event"


OrgId = Annotated[str, StringConstraints(pattern=f"^{ORG_ID_PATTERN}$")]
Ref = Annotated[str, StringConstraints(pattern=f"^{REF_PATTERN}$")]
Time = Annotated[datetime, BeforeValidator(parse_time)]
CREDITS_MAX = 10**12
LABELS_MAX = 8
LABELS_BYTES = 512


def format_labels(labels: dict[str, str]) -> str:
    """Return labels as JSON, as they are stored, in the order in which they were sent."""
    return json.dumps(labels, ensure_ascii=False, separators=(",", ":"))


def require_short_labels(labels: dict[str, str]) -> dict[str, str]:
    """Return the labels. Raises ValueError if they are too many or too long."""
    if len(labels) > LABELS_MAX:
        raise ValueError(f"must have at most {LABELS_MAX} pairs")
    if len(format_labels(labels).encode()) > LABELS_BYTES:
        raise ValueError(f"must have at most {LABELS_BYTES} bytes of JSON in all")
    return labels


LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
LabelText = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00]*$")]
Labels = Annotated[dict[LabelName, LabelText], AfterValidator(require_short_labels)]
"""What the producer wants to know again about a usage or a grant, such as the user or the request that spent it."""


class AnyEvent(BaseModel):
    """What all events share: exact types, no unknown fields, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    org_id: OrgId


class UsageEvent(AnyEvent):
    """Credits that an organisation used.

    `occurred_at` defaults to when the event was added or to now, whichever is earlier.
    """

    type: Literal["usage"] = "usage"
    usage_ref: Ref
    usage_kind: str
    credits: Annotated[int, Field(ge=0, le=CREDITS_MAX)]
    occurred_at: Time | None = None
    labels: Labels | None = None


class GrantEvent(AnyEvent):
    """Credits given by a plan or a promotion. Grants with a lower priority are drawn first."""

    type: Literal["grant"] = "grant"
    grant_ref: Ref
    credits: Annotated[int, Field(ge=1, le=CREDITS_MAX)]
    source: Literal["plan", "promotion"]
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    effective_at: Time | None = None
    expires_at: Time | None = None
    labels: Labels | None = None

    @field_validator("expires_at")
    @classmethod
    def end_after_start(cls, expires_at: datetime | None, info: ValidationInfo) -> datetime | None:
        """Refuse a grant that ends before it starts."""
        effective_at = info.data.get("effective_at")
        if expires_at and effective_at and expires_at <= effective_at:
            raise ValueError("must be after effective_at")
        return expires_at


class RevokeEvent(AnyEvent):
    """Takes back what remains of a grant. What was consumed stays consumed."""

    type: Literal["revoke"] = "revoke"
    grant_ref: Ref
    reason: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")] | None = None


class SettleEvent(AnyEvent):
    """Posts what time causes: grants that have started, and grants that have ended."""

    type: Literal["settle"] = "settle"


Event = UsageEvent | GrantEvent | RevokeEvent | SettleEvent
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
E = TypeVar("E", bound=AnyEvent)


def parse_event(raw: bytes, usage_kinds: Collection[str] = USAGE_KINDS_DEFAULT, uncut_size: int | None = None) -> Event:
    """Return the event in the JSON `raw`. Raises EventTooLarge, EventUndecodable or EventInvalid.

    `uncut_size`: how many bytes the event had before `raw` was cut.
    """
    return parse_as(EVENT, raw, usage_kinds, uncut_size)


def parse_as(events: TypeAdapter[E], raw: bytes, usage_kinds: Collection[str], uncut_size: int | None = None) -> E:
    """Return the event in the JSON `raw`, which is one of `events`. All else is as in `parse_event`."""
    size = len(raw) if uncut_size is None else uncut_size
    if size > EVENT_BYTES:
        raise EventTooLarge(f"an event has at most {EVENT_BYTES} bytes, this one has {size}")
    if not raw:
        raise EventUndecodable("the stream entry has no field `event`, or an empty one")
    try:
        event = events.validate_json(raw)
    except ValidationError as error:
        raise to_refusal(error, raw) from None
    if may_be_ambiguous(raw, event) and (fields := find_ambiguities(raw)):
        raise EventInvalid(f"the event is not valid: {', '.join(fields)}", fields)
    return require_known_kind(event, usage_kinds)


def may_be_ambiguous(raw: bytes, event: AnyEvent) -> bool:
    """Tell whether the JSON of an event needs a closer look, in 0.4 µs: `find_ambiguities` takes ten times as long.

    It does if more keys may be written than fields were set: each key ends in `":`. Or if a number is zero: it may be
    written `-0`.
    """
    labels = event.labels if isinstance(event, UsageEvent | GrantEvent) else None
    if raw.translate(None, b" \t\r\n").count(b'":') != len(event.model_fields_set) + len(labels or ()):
        return True
    if isinstance(event, UsageEvent):
        return event.credits == 0
    return isinstance(event, GrantEvent) and event.priority == 0


def check_event(event: Event | dict[str, Any], usage_kinds: Collection[str] = USAGE_KINDS_DEFAULT) -> Event:
    """Return the event in a model or a dictionary, whose times may be datetimes. Raises EventInvalid."""
    try:
        return require_known_kind(EVENT.validate_python(event), usage_kinds)
    except ValidationError as error:
        raise to_refusal(error) from None


def require_known_kind(event: E, usage_kinds: Collection[str]) -> E:
    """Return the event. Raises EventInvalid for a usage whose kind is not in the setting USAGE_KINDS_DEFAULT."""
    if isinstance(event, UsageEvent) and event.usage_kind not in usage_kinds:
        raise EventInvalid(
            "the event is not valid: usage_kind", {"usage_kind": f"must be one of {', '.join(usage_kinds)}"}
        )
    return event


def find_ambiguities(raw: bytes) -> dict[str, str]:
    """Return the fields of a JSON object that programs read differently, and what is wrong with each."""
    # Numbers become bytes, which no other JSON value becomes.
    pairs = json.loads(raw, object_pairs_hook=list, parse_int=str.encode)
    names = [name for name, _ in pairs]
    for name, value in pairs:
        if isinstance(value, list):  # the labels
            names += [f"{name}.{label}" for label, _ in value]
    times = Counter(names)
    minus_zeros = {name: "must be 0, not -0" for name, value in pairs if value == b"-0"}
    return minus_zeros | {name: f"is given {number} times" for name, number in times.items() if number > 1}


def describe_encoding(raw: bytes) -> str | None:
    """Return what to change if bytes are not text in UTF-8, or None if they are."""
    if problem := describe_first_bytes(raw):
        return problem
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8: send JSON in UTF-8"
    return None


def describe_first_bytes(raw: bytes) -> str | None:
    """Return what to change if the first bytes are those of another encoding or of a compressed file, else None."""
    problems = (problem for first, problem in FIRST_BYTES.items() if raw.startswith(first))
    return next(problems, UTF_16 if b"\0" in raw[:4] else None)


UTF_16 = "it is UTF-16 or UTF-32: send JSON in UTF-8"
COMPRESSED = "it is compressed: send the JSON itself, in UTF-8"
FIRST_BYTES = {
    BYTE_ORDER_MARK: "it begins with a byte order mark: send JSON in UTF-8 without one",
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
    b"\x1f\x8b": COMPRESSED,
    b"\x28\xb5\x2f\xfd": COMPRESSED,
    b"PK\x03\x04": COMPRESSED,
}


def to_refusal(error: ValidationError, raw: bytes = b"") -> EventRefused:
    """Return pydantic's error about `raw`, if it was JSON, as ours. It repeats no input, so no secret is logged."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return EventUndecodable(describe_encoding(raw) or found[0]["msg"])
    fields = dict(describe_field(problem) for problem in found[:FIELDS_REPORTED_MAX])
    return EventInvalid(f"the event is not valid: {', '.join(fields)}", fields)


def describe_field(problem: Any) -> tuple[str, str]:
    """Return the wrong field's name and what is wrong with it. If the event's type is unknown, that field is `type`."""
    if problem["type"].startswith("union_tag"):
        return "type", "must be one of usage, grant, revoke, settle"
    path = ".".join(str(part) for part in problem["loc"][1:]) or "event"
    message = WHOLE_NUMBER if problem["type"].startswith("int_") else problem["msg"].removeprefix("Value error, ")
    return path.encode("unicode_escape").decode()[:128], message
