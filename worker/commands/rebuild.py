"""`rebuild`."""

import click

from feeds.cached.writer import give_up, read_epoch
from worker.commands.output import json_option, print_json
from worker.commands.servers import open_ledger


@click.command()
@json_option
def rebuild(*, as_json: bool) -> None:
    """Make every cached feed anew, by starting a new epoch.

    Do so after Postgres was restored or failed over: lines of a lost day are never served once it has ended.
    Feeds are read from Postgres until they are warm again; no page is wrong meanwhile.
    """
    with open_ledger() as (connection, _):
        give_up(connection, read_epoch(connection))
        epoch = read_epoch(connection)
    if as_json:
        print_json({"epoch": str(epoch)})
    else:
        click.echo("A new epoch has begun: feeds are made anew as they are read.")
