"""`feed`, `balance` and `grants`: print what Postgres holds of an organisation."""

import asyncio
import json
from decimal import Decimal
from typing import Any, NamedTuple

import click
from psycopg import Connection
from psycopg.rows import dict_row

from feeds.cursor import Signer
from feeds.database import READING, begin
from feeds.endpoint.page_body import PageRequest, render_body
from feeds.movement import Kind
from feeds.page import Filter, number_of
from feeds.postgres import Postgres
from feeds.queries import load_queries
from feeds.schema import Ledger
from feeds.store import Store, read_place
from worker.commands import CommandFailed
from worker.commands.output import count, json_option, print_facts, print_json, print_table
from worker.commands.servers import open_ledger
from worker.settings import worker_settings

SQL = load_queries(__file__)


class OrganisationRow(NamedTuple):
    """An organisation's number, and how many movements and grants it has."""

    org_no: int
    movements: int
    grants: int


@click.command()
@click.argument("org")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only movements of this kind.")
@click.option("--usage-kind", help="Only movements of this usage kind.")
@click.option("--page", type=click.IntRange(1, 2147483647), default=1, show_default=True, help="Page 1 is the newest.")
@click.option(
    "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many movements a page holds."
)
@json_option
def feed(*, org: str, page: int, limit: int, as_json: bool, **filters: str | None) -> None:
    """Print a page of ORG's movements, newest first. With --json, print the same answer as the endpoint."""
    with open_ledger() as (connection, ledger), begin(connection, READING):
        find_organisation(connection, org)
    request = PageRequest(read_filter(ledger, **filters), limit, page)
    document = read_page(ledger, org, request)
    if as_json:
        print_json(document)
        return
    print_table(
        ["created", "kind", "credits", "usage", "ref"],
        [
            [item["created_at"][:19] + "Z", item["kind"], item["credits"], item.get("usage_kind"), item["usage_ref"]]
            for item in document["items"]
        ],
    )
    pages = document["pages"]
    click.echo(f"page {pages['page']:,} of {pages['total_pages']:,}, {count(pages['total_items'], 'item')}")


def read_filter(ledger: Ledger, kind: str | None, usage_kind: str | None) -> Filter:
    """Return the feed that the options name."""
    if usage_kind is not None and usage_kind not in ledger.usage_numbers:
        raise click.BadParameter(f"must be one of {', '.join(ledger.usage_numbers)}", param_hint="--usage-kind")
    return Filter(Kind(kind) if kind else None, usage_kind)


def read_page(ledger: Ledger, org: str, request: PageRequest) -> Any:
    """Return the endpoint's answer."""
    can_have_movements = number_of(request.feed, ledger.usage_numbers) is not None
    total, items = asyncio.run(read_items(ledger, org, request)) if can_have_movements else (0, [])
    return json.loads(render_body(Signer(ledger.cursor_secret, ledger.usage_numbers), org, request, total, items))


async def read_items(ledger: Ledger, org: str, request: PageRequest) -> tuple[int, list[bytes]]:
    """Return the feed's count and the page's items, read as the endpoint reads them."""
    postgres = Postgres(worker_settings().database_url, deadline_s=30, schema=ledger.schema, isolation=ledger.isolation)
    try:
        found = await read_place(Store(postgres, ledger.usage_numbers), org, request.feed, request.place)
    finally:
        await postgres.close()
    return found.total, found.items


@click.command()
@click.argument("org")
@json_option
def balance(*, org: str, as_json: bool) -> None:
    """Print what ORG has left: all credits, those that can be drawn now, and those of grants that start later."""
    with open_ledger() as (connection, _), begin(connection, READING):
        organisation = find_organisation(connection, org)
        row = read_rows(connection, "read_balance", organisation)[0]
    found = {name: int(value) if isinstance(value, Decimal) else value for name, value in row.items()}
    facts = {"org_id": org, **found, "movements": organisation.movements, "grants": organisation.grants}
    (print_json if as_json else print_facts)(facts)


@click.command()
@click.argument("org")
@json_option
def grants(*, org: str, as_json: bool) -> None:
    """Print ORG's grants: open ones in the order in which they are drawn, then the others, newest first."""
    with open_ledger() as (connection, _), begin(connection, READING):
        found = read_rows(connection, "list_grants", find_organisation(connection, org))
    if as_json:
        print_json(found)
        return
    headings = {"grant_ref": "grant", "state": "state", "priority": "prio", "credits": "credits", "remaining": "left"}
    if any(grant["effective_at"] for grant in found):
        headings["effective_at"] = "from"
    headings["expires_at"] = "until"
    print_table(list(headings.values()), [[grant[name] for name in headings] for grant in found])


def find_organisation(connection: Connection[Any], org: str) -> OrganisationRow:
    """Return the organisation. Raises CommandFailed if it is unknown."""
    row = connection.execute(SQL["find_organisation"], {"org_id": org}).fetchone()
    if row is None:
        raise CommandFailed(f"Unknown organisation {org}. It exists once it has an event, a key or a member.")
    return OrganisationRow(*row)


def read_rows(connection: Connection[Any], query: str, organisation: OrganisationRow) -> list[dict[str, Any]]:
    """Return the rows of a query about one organisation."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SQL[query], {"org_no": organisation.org_no}).fetchall()
