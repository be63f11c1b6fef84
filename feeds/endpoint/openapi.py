"""Which document describes the HTTP interface, in the form of OpenAPI 3.1?"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from pydantic.json_schema import models_json_schema

from feeds.cursor import CURSOR_CHARS
from feeds.endpoint import errors
from feeds.endpoint.errors import Problem
from feeds.endpoint.openapi_models import (
    BALANCE_EXAMPLE,
    GRANT_EXAMPLE,
    ITEM_EXAMPLE,
    MODELS,
    OPTIONAL,
    PAGES_EXAMPLE,
    Json,
)
from feeds.endpoint.query import LIMIT_DEFAULT, LIMIT_MAX, PAGE_MAX
from feeds.identifiers import ORG_ID_PATTERN
from feeds.movement import Kind


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
            "/credits": {method: describe_balance(method) for method in ("get", "head")},
            "/credits/grants": {method: describe_grants(method) for method in ("get", "head")},
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
    example = {"object": "list", "items": [ITEM_EXAMPLE], "pages": PAGES_EXAMPLE}
    return describe_reading(
        method,
        "list_credit_activity",
        [*describe_filters(usage_kinds), *describe_paging()],
        describe_answer("A page of one moment, newest first", "CreditList", example),
        describe_errors("usage", errors.InvalidFilter, errors.InvalidPage, errors.InvalidParameter),
    )


def describe_balance(method: str) -> Json:
    """Return the operation that reads the balance."""
    at = {"type": "string", "format": "date-time"}
    return describe_reading(
        method,
        "read_credit_balance",
        [describe_parameter("at", "An earlier moment; the default is now.", at)],
        describe_answer("The balance at one moment", "CreditBalance", BALANCE_EXAMPLE),
        describe_errors("balance", errors.InvalidTime, errors.InvalidParameter),
    )


def describe_grants(method: str) -> Json:
    """Return the operation that lists grants."""
    example = {"object": "list", "items": [GRANT_EXAMPLE], "pages": PAGES_EXAMPLE}
    state = {"type": "string", "enum": ["open"]}
    return describe_reading(
        method,
        "list_credit_grants",
        [describe_parameter("state", "Only grants that are pending or active.", state), *describe_paging()],
        describe_answer("A page of one moment, newest first", "GrantList", example),
        describe_errors("grants", errors.InvalidFilter, errors.InvalidPage, errors.InvalidParameter),
    )


def describe_reading(method: str, name: str, parameters: list[Json], answer: Json, refusals: Json) -> Json:
    """Return an operation that reads something of an organisation. HEAD gives the headers of the same answer."""
    sentence = name.replace("_", " ").capitalize()
    return {
        "operationId": name if method == "get" else f"head_{name}",
        "summary": sentence if method == "get" else f"{sentence}: the headers of the same answer",
        "parameters": [*parameters, *describe_headers()],
        "responses": {"200": answer, **refusals},
        "security": [{"key": []}],
    }


def describe_errors(noun: str, *bad_requests: type[Problem]) -> Json:
    """Return the answers of a path that needs a key, except 200."""
    return {
        "304": {"description": "The body still has an ETag of If-None-Match", "headers": body_headers()},
        "400": describe_refusals(noun, *bad_requests),
        "401": describe_refusals(noun, errors.IdentityMissing),
        "403": describe_refusals(noun, errors.Forbidden),
        "429": describe_rate_limited(),
        "500": describe_refusals(noun, errors.InternalError),
    }


def describe_filters(usage_kinds: Sequence[str]) -> list[Json]:
    """Return the parameters that choose a feed."""
    kinds = {"type": "string", "enum": [kind.value for kind in Kind]}
    return [
        describe_parameter("kind", "Why credits moved.", kinds),
        describe_parameter(
            "usage_kind", "What the credits were used for.", {"type": "string", "enum": list(usage_kinds)}
        ),
    ]


def describe_paging() -> list[Json]:
    """Return the parameters that choose a page."""
    page = {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 1}
    limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}
    cursor = {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{{CURSOR_CHARS}}}$"}
    return [
        describe_parameter("page", "Page 1 has the newest items. Not together with `cursor`.", page),
        describe_parameter("limit", "Items on a page.", limit),
        describe_parameter("cursor", "A cursor from an earlier answer for the same list, in place of `page`.", cursor),
    ]


def describe_parameter(name: str, description: str, schema: Json) -> Json:
    """Return a parameter of the query. An empty value means that it is absent."""
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": or_empty(schema),
        "allowEmptyValue": True,
    }


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


def describe_answer(description: str, model: str, example: Json) -> Json:
    """Return an answer of JSON."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {
        "description": description,
        "headers": body_headers(),
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def body_headers() -> Json:
    """Return the headers that every body comes with."""
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
