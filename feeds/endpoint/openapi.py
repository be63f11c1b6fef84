"""The OpenAPI 3.1 description of the HTTP interface, made from these models."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from feeds.cursor import CURSOR_CHARS
from feeds.endpoint import errors
from feeds.endpoint.errors import Problem
from feeds.endpoint.query import LIMIT_DEFAULT, LIMIT_MAX, PAGE_MAX
from feeds.identifiers import ORG_ID_PATTERN
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


MODELS = (CreditList, Error, Health)
OPTIONAL = {"CreditEntry": ["usage_kind"], "Error": ["fields"], "Health": ["reason", "away"]}
"""Members that are left out if they do not apply. They are never null."""


def describe(usage_kinds: Sequence[str]) -> Json:
    """Return the OpenAPI document for a ledger with these usage kinds."""
    _, definitions = models_json_schema(
        [(model, "serialization") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    schemas = definitions["$defs"]
    for model, members in OPTIONAL.items():
        schemas[model]["required"] = [name for name in schemas[model]["required"] if name not in members]
    schemas["CreditEntry"]["properties"]["usage_kind"]["enum"] = list(usage_kinds)
    return {
        "openapi": "3.1.0",
        "info": {"title": "usage-feeds", "version": own_version(), "summary": "The credit activity of organisations."},
        "paths": {
            "/credits/usage": {method: describe_usage(method, usage_kinds) for method in ("get", "head")},
            "/livez": {"get": describe_probe("livez", "The process is alive")},
            "/readyz": {"get": describe_probe("readyz", "Pages can be served, from Redis or from Postgres")},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "ufk_…"}},
        },
    }


def own_version() -> str:
    """Return this program's version, or 0 if it runs from a checkout and is not installed."""
    try:
        return version("usage-feeds")
    except PackageNotFoundError:
        return "0"


def describe_usage(method: str, usage_kinds: Sequence[str]) -> Json:
    """Return the operation that lists credit activity."""
    return {
        "operationId": "list_credit_activity" if method == "get" else "head_credit_activity",
        "summary": "List credit activity" if method == "get" else "The headers of the same page",
        "security": [{"key": []}],
        "parameters": [*describe_parameters(usage_kinds), *describe_headers()],
        "responses": {
            "200": describe_page(),
            "304": {"description": "The page still has an ETag of If-None-Match", "headers": page_headers()},
            "400": describe_refusals("usage", errors.InvalidFilter, errors.InvalidPage, errors.InvalidParameter),
            "401": describe_refusals("usage", errors.IdentityMissing),
            "403": describe_refusals("usage", errors.Forbidden),
            "429": describe_rate_limited(),
            "500": describe_refusals("usage", errors.InternalError),
        },
    }


def describe_parameters(usage_kinds: Sequence[str]) -> list[Json]:
    """Return the parameters of the query. An empty value means that the parameter is absent."""
    cursor = {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{{CURSOR_CHARS}}}$"}
    schemas: dict[str, tuple[str, Json]] = {
        "kind": ("Why credits moved.", {"type": "string", "enum": [kind.value for kind in Kind]}),
        "usage_kind": ("What the credits were used for.", {"type": "string", "enum": list(usage_kinds)}),
        "page": (
            "Page 1 has the newest items. Not together with `cursor`.",
            {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 1},
        ),
        "limit": (
            "Items on a page.",
            {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
        ),
        "cursor": ("A cursor from an earlier answer for the same feed, in place of `page`.", cursor),
    }
    return [
        {"name": name, "in": "query", "description": description, "schema": or_empty(schema), "allowEmptyValue": True}
        for name, (description, schema) in schemas.items()
    ]


def or_empty(schema: Json) -> Json:
    """Return the schema of a parameter that may be empty, which means that it is absent."""
    return {"anyOf": [schema, {"const": ""}]}


def describe_headers() -> list[Json]:
    """Return the headers of a request, without the key's."""
    org_id = {"type": "string", "pattern": f"^{ORG_ID_PATTERN}$"}
    return [
        {
            "name": "X-Org-ID",
            "in": "header",
            "description": "The organisation to read. Required with a personal key.",
            "schema": or_empty(org_id),
        },
        {
            "name": "If-None-Match",
            "in": "header",
            "description": "An ETag, a list of them, or `*`.",
            "schema": {"type": "string"},
        },
    ]


def describe_page() -> Json:
    """Return the answer with a page."""
    example = {"object": "list", "items": [ITEM_EXAMPLE], "pages": PAGES_EXAMPLE}
    schema = {"$ref": "#/components/schemas/CreditList"}
    return {
        "description": "A page of one moment, newest first",
        "headers": page_headers(),
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def page_headers() -> Json:
    """Return the headers of a page."""
    return {
        "ETag": {"description": "Strong.", "schema": {"type": "string"}},
        "Cache-Control": {"schema": {"const": "private, no-cache"}},
        "Vary": {"schema": {"const": "Authorization, X-Org-ID"}},
    }


def describe_refusals(noun: str, *problems: type[Problem]) -> Json:
    """Return the answers of a path that share a status."""
    examples = {
        problem.code_of(noun): {
            "value": {"object": "error", "code": problem.code_of(noun), "message": problem.message_of(noun)}
        }
        for problem in problems
    }
    described: Json = {
        "description": "; or ".join((problem.__doc__ or "").splitlines()[0] for problem in problems),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "examples": examples}},
    }
    for name, value in problems[0].headers:
        described["headers"] = {name.decode().title(): {"schema": {"const": value.decode()}}}
    return described


def describe_rate_limited() -> Json:
    """Return the answer to a key that is over its rate."""
    described = describe_refusals("usage", errors.RateLimited)
    described["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return described


def describe_probe(name: str, promise: str) -> Json:
    """Return the operation of a probe."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}
    answers: Json = {"200": {"description": promise, "content": content}}
    if name == "readyz":
        answers["503"] = {"description": "Pages cannot be served now, and the reason", "content": content}
    return {"operationId": name, "summary": promise, "responses": answers}
