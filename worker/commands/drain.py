"""`drain`."""

import click

from worker.commands.output import count, json_option, print_json
from worker.commands.servers import open_ledger, open_streams
from worker.intake.batch import Intake
from worker.intake.drain import drain_all
from worker.process import publish


@click.command()
@json_option
def drain(*, as_json: bool) -> None:
    """Post what waits in the streams, publish it, and return when nothing waits.

    Needs neither Celery nor its broker, so it works when Redis is full.
    """
    with open_ledger() as (connection, ledger), open_streams() as streams:
        intake = Intake(connection, streams, ledger, publish, lambda: None)
        drain_all(intake)
    if as_json:
        print_json({"posted": intake.taken - intake.buried, "buried": intake.buried})
        return
    click.echo(f"{count(intake.taken - intake.buried, 'event')} posted, {intake.buried:,} buried.")
