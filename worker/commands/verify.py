"""`verify`."""

import sys

import click

from worker.audit import Audit, UnknownOrganisation, audit_ledger, audit_streams
from worker.commands import Failed
from worker.commands.output import json_option, show_document, show_rows
from worker.commands.servers import open_ledger, open_streams


@click.command()
@click.argument("org", required=False)
@json_option
def verify(*, org: str | None, as_json: bool) -> None:
    """Recompute every invariant of the ledger, of ORG or of all organisations; exit 1 on any difference.

    All is read at one moment, so that it is exact under load; nothing is locked or changed.
    """
    with open_ledger() as (connection, ledger), open_streams() as redis:
        try:
            audit = audit_ledger(connection, org)
        except UnknownOrganisation:
            raise Failed(f"No organisation {org} is known: it is from its first event, key or member on.") from None
        audit.findings.extend(audit_streams(redis, ledger.event_shards))
    if as_json:
        show_document(audit._asdict() | {"findings": [finding._asdict() for finding in audit.findings]})
    else:
        show(audit)
    if audit.findings:
        sys.exit(1)


def show(audit: Audit) -> None:
    """Print the differences, and what was checked."""
    if audit.findings:
        show_rows(("organisation", "rule", "where", "expected", "found"), audit.findings)
    click.echo(
        f"{audit.organisations:,} organisations, {audit.movements:,} movements, {audit.grants:,} grants:"
        f" {f'{len(audit.findings):,} differences' if audit.findings else 'no difference'}."
    )
