"""Which objects do the answers consist of? The OpenAPI description is made from these models."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from feeds.endpoint.query import LIMIT_MAX
from feeds.movement import Kind

Json = dict[str, Any]

CURSOR_EXAMPLE = "AAAAAAAAAAAAAABQQAAAAAAAAAD0c2VhbGVkLWV4YW1wbGUt"
ITEM_EXAMPLE: Json = {
    "object": "credit_entry",
    "id": "cent_01h455vb4pex5vsknk084sn02q",
    "kind": "consume",
    "credits": -10,
    "usage_kind": "ai_usage",
    "usage_ref": "usage_01h455vb4pex5vsknk084sn02q",
    "created_at": "2026-06-01T10:00:00Z",
}
PAGES_EXAMPLE: Json = {
    "object": "cursor",
    "page": 2,
    "limit": 20,
    "total_items": 100,
    "total_pages": 5,
    "has_next": True,
    "has_prev": True,
    "direction": "next",
    "cursor": CURSOR_EXAMPLE,
    "next_cursor": CURSOR_EXAMPLE,
    "prev_cursor": CURSOR_EXAMPLE,
}


class CreditEntry(BaseModel):
    """One movement of the credit ledger. It never changes once it is written."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [ITEM_EXAMPLE]})

    object: Literal["credit_entry"]
    id: Annotated[str, Field(pattern="^cent_[0-7][0-9a-hjkmnp-tv-z]{25}$", description="A TypeID.")]
    kind: Annotated[Kind, Field(description="Why credits moved.")]
    credits: Annotated[int, Field(description="Signed: positive for allot, negative for all others.")]
    usage_kind: Annotated[str, Field(default=..., description="Only on consume and overflow.")]
    usage_ref: Annotated[
        str, Field(description="The usage's ref on consume and overflow, the grant's on allot, expire and revoke.")
    ]
    created_at: Annotated[AwareDatetime, Field(description="When the movement was recorded, in UTC.")]


class Pages(BaseModel):
    """The page's place in its feed, and its neighbours. The counts are of the same moment as the items."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [PAGES_EXAMPLE]})

    object: Literal["cursor"]
    page: Annotated[int, Field(ge=1, description="For a cursor: the page that now holds its first item.")]
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)]
    total_items: Annotated[int, Field(ge=0)]
    total_pages: Annotated[int, Field(ge=0)]
    has_next: bool
    has_prev: bool
    direction: Annotated[Literal["next", "prev"], Field(description="The direction in which the cursor was followed.")]
    cursor: Annotated[str | None, Field(description="Gives the same page again.")]
    next_cursor: Annotated[str | None, Field(description="Older items; null if there are none.")]
    prev_cursor: Annotated[str | None, Field(description="Newer items; null if there are none.")]


class CreditList(BaseModel):
    """A page of an organisation's credit activity, newest first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"]
    items: Annotated[list[CreditEntry], Field(max_length=LIMIT_MAX)]
    pages: Pages


GRANT_EXAMPLE: Json = {
    "object": "credit_grant",
    "grant_ref": "grant_01h455vb4pex5vsknk084sn02q",
    "source": "promotion",
    "priority": 10,
    "credits": 500,
    "drawn": 160,
    "expired": 0,
    "revoked": 0,
    "remaining": 340,
    "state": "active",
    "effective_at": None,
    "expires_at": "2026-07-01T00:00:00Z",
    "labels": {"order": "4711"},
}


class CreditGrant(BaseModel):
    """Credits that a plan or a promotion gave: credits = drawn + expired + revoked + remaining."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [GRANT_EXAMPLE]})

    object: Literal["credit_grant"]
    grant_ref: str
    source: Literal["plan", "promotion"]
    priority: Annotated[int, Field(ge=0, le=100, description="Lower is drawn first.")]
    credits: Annotated[int, Field(ge=1)]
    drawn: Annotated[int, Field(ge=0)]
    expired: Annotated[int, Field(ge=0)]
    revoked: Annotated[int, Field(ge=0)]
    remaining: Annotated[int, Field(ge=0)]
    state: Literal["pending", "active", "spent", "expired", "revoked"]
    effective_at: AwareDatetime | None
    expires_at: AwareDatetime | None
    labels: Annotated[dict[str, str], Field(default=..., description="Only where the grant has some.")]


class GrantList(BaseModel):
    """A page of an organisation's grants, newest first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"]
    items: Annotated[list[CreditGrant], Field(max_length=LIMIT_MAX)]
    pages: Pages


class Error(BaseModel):
    """The answer to a request that fails."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["error"]
    code: str
    message: str
    fields: Annotated[dict[str, str], Field(default=..., description="Which parameter or header is wrong, and how.")]


class Health(BaseModel):
    """The answer to a probe."""

    status: Literal["alive", "ready", "unready"]
    reason: Annotated[str, Field(default=...)]
    away: Annotated[list[Literal["postgres", "redis"]], Field(default=..., description="Servers that do not answer.")]


BALANCE_EXAMPLE: Json = {
    "object": "credit_balance",
    "available_credits": 1840,
    "by_source": {"plan": 1500, "promotion": 340},
    "pending_credits": 500,
    "overflow_credits": 12,
    "next_expiry": {"credits": 340, "expires_at": "2026-07-01T00:00:00Z"},
    "position": 4711,
}


class BySource(BaseModel):
    """Credits by the source of the grants that hold them."""

    model_config = ConfigDict(extra="forbid")

    plan: Annotated[int, Field(ge=0)]
    promotion: Annotated[int, Field(ge=0)]


class NextExpiry(BaseModel):
    """How many of the available credits end next, and when."""

    model_config = ConfigDict(extra="forbid")

    credits: Annotated[int, Field(ge=1)]
    expires_at: AwareDatetime


class CreditBalance(BaseModel):
    """What an organisation has. With `at` it has only what the movements up to that moment tell."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [BALANCE_EXAMPLE]})

    object: Literal["credit_balance"]
    available_credits: Annotated[int, Field(ge=0, description="What can be drawn.")]
    by_source: Annotated[BySource, Field(default=..., description="Not with `at`.")]
    pending_credits: Annotated[int, Field(default=..., ge=0, description="Of grants that start later. Not with `at`.")]
    overflow_credits: Annotated[int, Field(ge=0, description="All overflow ever.")]
    next_expiry: Annotated[NextExpiry | None, Field(default=..., description="Not with `at`.")]
    position: Annotated[int, Field(ge=0, description="Of the last movement.")]


MODELS = (CreditList, CreditBalance, GrantList, Error, Health)
OPTIONAL = {
    "CreditEntry": ["usage_kind"],
    "CreditBalance": ["by_source", "pending_credits", "next_expiry"],
    "CreditGrant": ["labels"],
    "Error": ["fields"],
    "Health": ["reason", "away"],
}
"""Members that are left out if they do not apply. They are never null."""
