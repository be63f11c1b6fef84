"""`keys`: who may read."""

from datetime import datetime
from typing import Any

import click

from feeds.keys import BILLING_READ, RATE_MAX, Key, create_key, format_key_id, list_keys, parse_key_id, revoke_key
from feeds.movement import format_time
from worker.commands import CommandFailed
from worker.commands.arguments import INSTANT, ORG, USER, Matching
from worker.commands.output import count, json_option, print_json, print_table
from worker.commands.servers import open_ledger


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.option("--org", type=ORG, help="A key of this organisation, which becomes known by it.")
@click.option("--user", type=USER, help="A personal key: it reads the organisations that its owner is a member of.")
@click.option(
    "--permission",
    "permissions",
    type=Matching("permission", "[a-z][a-z_]*:[a-z][a-z_]*"),
    multiple=True,
    default=(BILLING_READ,),
    show_default=True,
    help="What the key grants; may be repeated.",
)
@click.option("--expires-at", type=INSTANT, metavar="TIME", help="When it ends, like 2027-01-31T00:00:00Z.")
@click.option(
    "--rate",
    type=click.IntRange(1, RATE_MAX),
    metavar="N",
    help="How many requests a second it may make; as many as it likes without.",
)
@json_option
def create(  # noqa: PLR0913 -- one for each option
    *,
    org: str | None,
    user: str | None,
    permissions: tuple[str, ...],
    expires_at: datetime | None,
    rate: int | None,
    as_json: bool,
) -> None:
    """Create a key. Its secret is shown this once, alone on the last line."""
    if (org is None) == (user is None):
        raise click.UsageError("Give either --org or --user.")
    with open_ledger() as (connection, _):
        key, secret = create_key(
            connection, org_id=org, user_id=user, permissions=permissions, expires_at=expires_at, rate=rate
        )
    if as_json:
        print_json(describe(key) | {"secret": secret})
        return
    ends = f", until {format_time(key.expires_at)}" if key.expires_at else ""
    ends += f", {count(key.rate, 'request')} a second" if key.rate else ""
    click.echo(f"{format_key_id(key.key_id)} of {key.org_id or key.user_id} grants {', '.join(key.permissions)}{ends}.")
    click.echo("Its secret is shown this once:")
    click.echo(secret)


@keys.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List all keys, without their secrets."""
    with open_ledger() as (connection, _):
        found = list(list_keys(connection))
    if as_json:
        print_json({"keys": [describe(key) for key in found]})
    elif found:
        print_table(["id", "of", "grants", "until", "used"], [show_key(key) for key in found])
    else:
        click.echo("No keys.")


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(*, key_id: str, as_json: bool) -> None:
    """Revoke a key: it is refused everywhere within 10 seconds, for ever."""
    try:
        parsed = parse_key_id(key_id)
    except ValueError:
        raise click.UsageError(f"{key_id!r} is no key's ID: see `usage-feeds keys list`.") from None
    with open_ledger() as (connection, _):
        key = revoke_key(connection, parsed)
    if key is None:
        raise CommandFailed(f"No key {key_id}: see `usage-feeds keys list`.")
    if as_json:
        print_json(describe(key))
    else:
        click.echo(f"{key_id} is revoked.")


def describe(key: Key) -> dict[str, Any]:
    """Return what may be shown of a key."""
    return {
        "id": format_key_id(key.key_id),
        "org": key.org_id,
        "user": key.user_id,
        "permissions": key.permissions,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "rate": key.rate,
    }


def show_key(key: Key) -> list[object]:
    """Return a key's row of the table."""
    used = f"{key.last_used_at:%Y-%m-%d}" if key.last_used_at else None
    until = "revoked" if key.revoked_at else key.expires_at
    return [format_key_id(key.key_id), key.org_id or key.user_id, " ".join(key.permissions), until, used]
