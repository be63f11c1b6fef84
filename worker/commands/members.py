"""`members`: the roles of people in organisations."""

import click

from feeds.keys import ROLES, remove_member, set_member
from worker.commands import CommandFailed
from worker.commands.arguments import ORG, USER
from worker.commands.output import json_option, print_json
from worker.commands.servers import open_ledger


@click.group()
def members() -> None:
    """Set and remove the members of organisations. Members read with personal keys."""


@members.command("set")
@click.argument("org", type=ORG)
@click.argument("user", type=USER)
@click.argument("role", type=click.Choice(ROLES))
@json_option
def set_(*, org: str, user: str, role: str, as_json: bool) -> None:
    """Give a person a role. The roles owner, admin and billing may read, the role member may not."""
    with open_ledger() as (connection, _):
        set_member(connection, org, user, role)
    if as_json:
        print_json({"org": org, "user": user, "role": role})
    else:
        click.echo(f"{user} is {role} of {org}.")


@members.command()
@click.argument("org", type=ORG)
@click.argument("user", type=USER)
@json_option
def remove(*, org: str, user: str, as_json: bool) -> None:
    """End a membership."""
    with open_ledger() as (connection, _):
        was_member = remove_member(connection, org, user)
    if not was_member:
        raise CommandFailed(f"{user} is not a member of {org}.")
    if as_json:
        print_json({"org": org, "user": user, "role": None})
    else:
        click.echo(f"{user} is no longer a member of {org}.")
