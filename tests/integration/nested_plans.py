"""How did Postgres go about what a function asked?"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg

SETTINGS = {
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}

COMPILED_AT = 100_000
"""`jit_above_cost`, if nobody sets it."""


def scans_of(
    connection: psycopg.Connection[Any],
    table: str,
    query: bytes,
    parameters: Mapping[str, object],
    role: str | None = None,
) -> list[dict[str, Any]]:
    """Run a query, perhaps as a role, and return the plan nodes that read a table, with what they did.

    No plan may cost so much that Postgres would compile it: 50 ms, each time.
    The connection is a superuser's, with nothing but this before it.
    """
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute("LOAD 'auto_explain'")
    for name, value in SETTINGS.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    if role:
        connection.execute(f"SET ROLE {role}")
        connection.execute("SELECT set_config('usage_feeds.org_id', %s, false)", [parameters["org_id"]])
    said.clear()
    connection.execute(query, parameters)
    plans = [json.loads(words.split("plan:\n", 1)[1])["Plan"] for words in said if "plan:\n" in words]
    assert plans, said
    assert max(plan["Total Cost"] for plan in plans) < COMPILED_AT, plans
    return [node for plan in plans for node in walk(plan) if node.get("Relation Name") == table]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from walk(below)
