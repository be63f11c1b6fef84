"""`keys`: the API keys of organisations and people."""

from datetime import datetime
from typing import Any

import click

from feeds.keys import BILLING_READ, RATE_MAX, Key, create_key, format_key_id, list_keys, parse_key_id, revoke_key
from feeds.movement import format_time
from worker.commands import CommandFailed
from worker.commands.arguments import INSTANT, ORG, USER, TextMatching
from worker.commands.output import count, json_option, print_json, print_table
from worker.commands.servers import open_ledger


@click.group()
def keys() -> None:
    """Create, list and revoke API keys."""


@keys.command()
@click.option("--org", type=ORG, help="The organisation that the key reads. It is added if it is unknown.")
@click.option(
    "--user", type=USER, help="The owner of a personal key. It reads the organisations that its owner is a member of."
)
@click.option(
    "--permission",
    "permissions",
    type=TextMatching("permission", "[a-z][a-z_]*:[a-z][a-z_]*"),
    multiple=True,
    default=(BILLING_READ,),
    show_default=True,
    help="What the key allows; can be given several times.",
)
@click.option(
    "--expires-at", type=INSTANT, metavar="TIME", help="When the key ends, like 2027-01-31T00:00:00Z.  [default: never]"
)
@click.option(
    "--rate",
    type=click.IntRange(1, RATE_MAX),
    metavar="N",
    help="How many requests a second the key may make.  [default: no limit]",
)
@json_option
def create(  # noqa: PLR0913 -- one parameter for each option
    *,
    org: str | None,
    user: str | None,
    permissions: tuple[str, ...],
    expires_at: datetime | None,
    rate: int | None,
    as_json: bool,
) -> None:
    """Create a key, and print its secret on the last line. The secret cannot be printed again."""
    if (org is None) == (user is None):
        raise click.UsageError("Give either --org or --user.")
    with open_ledger() as (connection, _):
        key, secret = create_key(
            connection, org_id=org, user_id=user, permissions=permissions, expires_at=expires_at, rate=rate
        )
    if as_json:
        print_json(key_facts(key) | {"secret": secret})
        return
    limits = f", until {format_time(key.expires_at)}" if key.expires_at else ""
    limits += f", {count(key.rate, 'request')} a second" if key.rate else ""
    click.echo(
        f"{format_key_id(key.key_id)} of {key.org_id or key.user_id} allows {', '.join(key.permissions)}{limits}."
    )
    click.echo("Its secret, which cannot be printed again:")
    click.echo(secret)


@keys.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List all keys, without their secrets."""
    with open_ledger() as (connection, _):
        found = list(list_keys(connection))
    if as_json:
        print_json({"keys": [key_facts(key) for key in found]})
    elif found:
        print_table(["id", "of", "permissions", "until", "used"], [table_row(key) for key in found])
    else:
        click.echo("No keys.")


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(*, key_id: str, as_json: bool) -> None:
    """Revoke a key for ever. Every endpoint refuses it within 10 seconds."""
    try:
        parsed = parse_key_id(key_id)
    except ValueError:
        raise click.UsageError(f"{key_id!r} is not the ID of a key: see `usage-feeds keys list`.") from None
    with open_ledger() as (connection, _):
        key = revoke_key(connection, parsed)
    if key is None:
        raise CommandFailed(f"Unknown key {key_id}: see `usage-feeds keys list`.")
    if as_json:
        print_json(key_facts(key))
    else:
        click.echo(f"{key_id} is revoked.")


def key_facts(key: Key) -> dict[str, Any]:
    """Return a key's facts for JSON; its secret is not among them."""
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


def table_row(key: Key) -> list[object]:
    """Return a key's row of the printed table."""
    used = f"{key.last_used_at:%Y-%m-%d}" if key.last_used_at else None
    until = "revoked" if key.revoked_at else key.expires_at
    return [format_key_id(key.key_id), key.org_id or key.user_id, " ".join(key.permissions), until, used]
