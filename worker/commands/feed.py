"""`feed`, `balance` and `grants`: what Postgres knows of an organisation, from a terminal."""

import asyncio
import json
from typing import Any, NamedTuple

import click
from psycopg import Connection
from psycopg.rows import dict_row

from feeds.cursor import Signer
from feeds.endpoint.page_body import PageRequest, render_body
from feeds.movement import Kind
from feeds.page import Filter, feed_number
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
    """What the organisation's row says."""

    org_no: int
    movements: int
    grants: int


@click.command()
@click.argument("org")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Lines of this kind alone.")
@click.option("--usage-kind", help="Lines of this usage kind alone.")
@click.option("--page", type=click.IntRange(1, 2147483647), default=1, show_default=True, help="Page 1 is the newest.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Lines of a page.")
@json_option
def feed(*, org: str, page: int, limit: int, as_json: bool, **narrowed: str | None) -> None:
    """Show a page of ORG's movements, newest first, as the endpoint would (--json: its very answer)."""
    with open_ledger() as (connection, ledger):
        find_organisation(connection, org)
    ask = PageRequest(read_filter(ledger, **narrowed), limit, page)
    document = read_page(ledger, org, ask)
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


def read_page(ledger: Ledger, org: str, ask: PageRequest) -> Any:
    """Return the endpoint's own answer."""
    usage_number = ledger.usage_numbers[ask.feed.usage_kind] if ask.feed.usage_kind else None
    can_have_lines = feed_number(ask.feed.kind, usage_number) is not None
    total, entries = asyncio.run(read_entries(ledger, org, ask)) if can_have_lines else (0, [])
    return json.loads(render_body(Signer(ledger.cursor_secret, ledger.usage_numbers), org, ask, total, entries))


async def read_entries(ledger: Ledger, org: str, ask: PageRequest) -> tuple[int, list[bytes]]:
    """Read the feed's count and the page's lines as the endpoint does."""
    postgres = Postgres(worker_settings().database_url, deadline_s=30)
    try:
        found = await read_place(Store(postgres, ledger.usage_numbers), org, ask.feed, ask.place)
    finally:
        await postgres.close()
    return found.total, found.entries


@click.command()
@click.argument("org")
@json_option
def balance(*, org: str, as_json: bool) -> None:
    """Show what ORG has left: credits that remain, those drawable now, and those of grants yet to start."""
    with open_ledger() as (connection, _):
        organisation = find_organisation(connection, org)
        found = read_rows(connection, "read_balance", organisation)[0]
    facts = {"org_id": org, **found, "movements": organisation.movements, "grants": organisation.grants}
    (print_json if as_json else print_facts)(facts)


@click.command()
@click.argument("org")
@json_option
def grants(*, org: str, as_json: bool) -> None:
    """Show ORG's grants: open ones in the order in which they are drawn, then the others, newest first."""
    with open_ledger() as (connection, _):
        found = read_rows(connection, "list_grants", find_organisation(connection, org))
    if as_json:
        print_json(found)
        return
    shown = {"grant_ref": "grant", "state": "state", "priority": "prio", "credits": "credits", "remaining": "left"}
    if any(grant["effective_at"] for grant in found):
        shown["effective_at"] = "from"
    shown["expires_at"] = "until"
    print_table(list(shown.values()), [[grant[name] for name in shown] for grant in found])


def find_organisation(connection: Connection[Any], org: str) -> OrganisationRow:
    """Return the organisation, or end the command."""
    row = connection.execute(SQL["find_organisation"], {"org_id": org}).fetchone()
    if row is None:
        raise CommandFailed(f"No organisation {org} is known: it is from its first event, key or member on.")
    return OrganisationRow(*row)


def read_rows(connection: Connection[Any], query: str, organisation: OrganisationRow) -> list[dict[str, Any]]:
    """Return what a query finds of an organisation."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SQL[query], {"org_no": organisation.org_no}).fetchall()
