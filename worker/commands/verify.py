"""`verify`: the audit of the ledger, the streams and the cached feeds."""

import sys
from contextlib import closing
from typing import Any

import click
from psycopg import Connection
from psycopg.errors import DiskFull

from feeds.cached.format import FeedsAway
from feeds.cached.worker_connection import WorkerConnection
from feeds.schema import Ledger
from worker.audit.feeds import FeedAudit, audit_feeds
from worker.audit.ledger import Audit, NotedHash, UnknownOrganisation, audit_ledger
from worker.audit.streams import audit_streams
from worker.commands import CommandFailed
from worker.commands.arguments import HASH
from worker.commands.output import count, json_option, print_json, print_table
from worker.commands.servers import open_database, open_ledger, open_streams, place_of_redis, require_redis
from worker.intake.counters import note_verified
from worker.settings import worker_settings


@click.command()
@click.argument("org", required=False)
@click.option(
    "--from", "position", type=click.IntRange(min=1), help="A position in ORG's ledger whose hash was noted earlier."
)
@click.option("--hash", "noted_hash", type=HASH, help="The noted hash. It proves that nothing up to there was changed.")
@json_option
def verify(*, org: str | None, position: int | None, noted_hash: str | None, as_json: bool) -> None:
    """Recompute every invariant of the ledger, of ORG or of all organisations, and compare the cached feeds.

    Exit 1 on any difference. The result is exact under load: the ledger is read at one moment, and a cached feed that
    lags has 10 seconds to catch up. Nothing is locked or changed. If the feeds' Redis cannot be used, standard error
    says so, and only the ledger and the streams decide.

    With ORG, the position and hash of its newest movement are printed: note them where they cannot be changed.
    """
    noted = read_noted(org, position, noted_hash)
    with open_ledger() as (connection, ledger), open_database() as second, open_streams() as streams:
        try:
            audit = audit_with_little_memory(connection, org, noted, second)
        except UnknownOrganisation:
            raise CommandFailed(
                f"Unknown organisation {org}. It exists once it has an event, a key or a member."
            ) from None
        audit.findings.extend(audit_streams(streams, ledger.event_shards))
        feed_audit = compare_feeds(connection, ledger, org)
        if feed_audit is not None:
            audit.findings.extend(feed_audit.findings)
        if org is None:
            note_verified(streams, len(audit.findings))
    cached_feeds = None if feed_audit is None else feed_audit.cached_feeds
    if as_json:
        newest = audit.newest and audit.newest._asdict()
        facts = audit._asdict() | {"newest": newest, "cached_feeds": cached_feeds}
        print_json(facts | {"findings": [finding._asdict() for finding in audit.findings]})
    else:
        print_audit(audit, cached_feeds)
    if audit.findings:
        sys.exit(1)


def audit_with_little_memory(
    connection: Connection[Any], org: str | None, noted: NotedHash | None, second: Connection[Any]
) -> Audit:
    """Audit the ledger; once more without parallel queries if Postgres has no room for them."""
    try:
        return audit_ledger(connection, org, noted, others=[second])
    except DiskFull:
        click.echo(
            "usage-feeds: Postgres has no room for a parallel query, so verify starts again without: it takes longer."
            " Give Postgres's container `shm_size: 256mb`, or remount its /dev/shm with size=256m.",
            err=True,
        )
        return audit_ledger(connection, org, noted, others=[second], parallel=False)


def read_noted(org: str | None, position: int | None, noted_hash: str | None) -> NotedHash | None:
    """Return the position and hash that the options give, None if they give none."""
    if position is None and noted_hash is None:
        return None
    if org is None or position is None or noted_hash is None:
        raise click.UsageError("--from POSITION and --hash HASH go together, and with ORG.")
    return NotedHash(position, noted_hash.lower())


def compare_feeds(connection: Connection[Any], ledger: Ledger, org: str | None) -> FeedAudit | None:
    """Compare the cached feeds. Returns None, and prints the reason, if the feeds' Redis cannot be used."""
    url = require_redis(worker_settings().feeds_redis_url, "FEEDS_REDIS_URL")
    with closing(WorkerConnection(url)) as feeds_redis:
        try:
            return audit_feeds(connection, feeds_redis, ledger.usage_numbers, org)
        except FeedsAway as error:
            place = place_of_redis(url)
            click.echo(f"usage-feeds: The feeds' Redis at {place}: {error}: cached feeds were not compared.", err=True)
            return None


def print_audit(audit: Audit, cached_feeds: int | None) -> None:
    """Print the differences, and what was checked."""
    if audit.findings:
        print_table(("organisation", "rule", "where", "expected", "found"), audit.findings)
    checked = [
        count(audit.organisations, "organisation"),
        count(audit.movements, "movement"),
        count(audit.grants, "grant"),
        count(cached_feeds, "cached feed") if cached_feeds is not None else "no cached feed compared",
    ]
    differences = count(len(audit.findings), "difference") if audit.findings else "no difference"
    click.echo(f"{', '.join(checked)}: {differences}.")
    if audit.newest:
        click.echo(f"newest movement: position {audit.newest.position}, hash {audit.newest.hash}")
