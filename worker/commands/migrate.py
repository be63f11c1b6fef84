"""`migrate`."""

import click

from feeds.schema import SCHEMA_VERSION
from worker.commands.output import json_option, show_document
from worker.commands.servers import open_database
from worker.migrations import runner
from worker.settings import worker_settings


@click.command()
@json_option
def migrate(*, as_json: bool) -> None:
    """Bring the database's schema and the ledger's facts up to date.

    Safe to repeat, and to run twice at once. EVENT_SHARDS, USAGE_KINDS and EXPIRY_GRACE_S become
    facts of the ledger where they are set: kinds may only be added, shards change only while the
    streams are empty. Stop the workers before you change a fact: each then starts with the new one.
    """
    with open_database() as connection:
        applied = runner.migrate(connection, worker_settings())
    if as_json:
        show_document({"schema_version": SCHEMA_VERSION, "applied": applied})
    else:
        click.echo(
            f"The schema is at {SCHEMA_VERSION}: " + (f"applied {', '.join(applied)}." if applied else "nothing to do.")
        )
