"""`migrate`."""

import click

from feeds.schema import SCHEMA_VERSION
from worker.commands.output import json_option, print_json
from worker.commands.servers import open_database
from worker.migrations import roles, runner
from worker.settings import worker_settings


@click.command()
@click.option("--roles", "with_roles", is_flag=True, help="Make the database roles for worker and reader.")
@json_option
def migrate(*, with_roles: bool, as_json: bool) -> None:
    """Bring the database's schema and the ledger's facts up to date.

    Safe to repeat, and to run twice at once. EVENT_SHARDS, USAGE_KINDS and EXPIRY_GRACE_S become
    facts of the ledger where they are set: kinds may only be added, shards change only while the
    streams are empty. Stop the workers before you change a fact: each then starts with the new one.

    --roles makes usage_feeds_worker and usage_feeds_reader and gives each the rights that it needs and no more;
    grant them to the users that processes log in as.
    """
    with open_database() as connection:
        applied = runner.migrate(connection, worker_settings())
        if with_roles:
            roles.make_roles(connection)
    if as_json:
        print_json(
            {"schema_version": SCHEMA_VERSION, "applied": applied, "roles": list(roles.ROLES) if with_roles else []}
        )
    else:
        click.echo(
            f"The schema is at {SCHEMA_VERSION}: " + (f"applied {', '.join(applied)}." if applied else "nothing to do.")
        )
        if with_roles:
            click.echo(f"The roles are as they must be: {', '.join(roles.ROLES)}.")
