"""`rebuild`: discard every cached feed."""

import click

from feeds.cached.epoch import read_epoch
from feeds.cached.writer import start_new_epoch
from worker.commands.output import json_option, print_json
from worker.commands.servers import open_ledger


@click.command()
@json_option
def rebuild(*, as_json: bool) -> None:
    """Discard every cached feed, by starting a new epoch.

    Run it after Postgres was restored or failed over with a loss: when it has ended, no movement that was lost is
    served any more. Pages come from Postgres until the feeds are cached again. No page is wrong meanwhile.
    """
    with open_ledger() as (connection, _):
        start_new_epoch(connection, read_epoch(connection))
        epoch = read_epoch(connection)
    if as_json:
        print_json({"epoch": str(epoch)})
    else:
        click.echo("A new epoch has begun. Each feed is cached again when it is next read.")
