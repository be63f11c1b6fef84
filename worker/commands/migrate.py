"""`migrate`: bring schema and facts of the ledger up to date."""

import click

from feeds.schema import SCHEMA_VERSION
from worker.commands.output import json_option, print_json
from worker.commands.servers import open_database
from worker.migrations import roles, runner
from worker.settings import worker_settings


@click.command()
@click.option("--roles", "with_roles", is_flag=True, help="Create the database roles for worker and reader.")
@json_option
def migrate(*, with_roles: bool, as_json: bool) -> None:
    """Bring the database's schema and the ledger's facts up to date.

    It is safe to repeat, and to run twice at once. If EVENT_SHARDS, USAGE_KINDS or EXPIRY_GRACE_S is
    set, it becomes a fact of the ledger. Kinds can only be added. The number of shards can change only
    while the streams are empty. Before you change a fact, stop the workers; then start them with the
    new value.

    --roles creates usage_feeds_worker and usage_feeds_reader, and gives each only the rights that it
    needs. Grant them to the users that processes log in as.
    """
    with open_database() as connection:
        applied = runner.migrate(connection, worker_settings())
        if with_roles:
            roles.create_roles(connection)
    if as_json:
        print_json(
            {"schema_version": SCHEMA_VERSION, "applied": applied, "roles": list(roles.ROLES) if with_roles else []}
        )
    else:
        click.echo(
            f"The schema is at {SCHEMA_VERSION}: " + (f"applied {', '.join(applied)}." if applied else "nothing to do.")
        )
        if with_roles:
            click.echo(f"The roles are up to date: {', '.join(roles.ROLES)}.")
