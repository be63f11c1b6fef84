"""With which plans did Postgres run the statements inside a function?"""

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

JIT_ABOVE_COST = 100_000
"""The default of the setting `jit_above_cost`."""


def scans_of(
    connection: psycopg.Connection[Any],
    table: str,
    query: bytes,
    parameters: Mapping[str, object],
    role: str | None = None,
) -> list[dict[str, Any]]:
    """Run a query, perhaps as a role, and return the plan nodes that read a table, with their row counts.

    Also asserts that no plan costs so much that Postgres compiles it, which takes 50 ms each time. The connection must
    be a superuser's; the settings stay set on it.
    """
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    connection.execute("LOAD 'auto_explain'")
    for name, value in SETTINGS.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    if role:
        connection.execute(f"SET ROLE {role}")
        connection.execute("SELECT set_config('usage_feeds.org_id', %s, false)", [parameters["org_id"]])
    notices.clear()
    connection.execute(query, parameters)
    plans = [json.loads(text.split("plan:\n", 1)[1])["Plan"] for text in notices if "plan:\n" in text]
    assert plans, notices
    assert max(plan["Total Cost"] for plan in plans) < JIT_ABOVE_COST, plans
    return [node for plan in plans for node in walk(plan) if node.get("Relation Name") == table]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan node and all nodes below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)
