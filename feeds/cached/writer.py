"""How do committed movements come into the cached feeds?

The worker's side. Append and drop follow the commit; both may be repeated at any time.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

import redis
from psycopg import Connection
from psycopg.rows import scalar_row

from feeds.cached import format as proof
from feeds.cached.format import EPOCH_EVERY_S, EPOCH_WITHIN_S, WINDOW, FeedsAway, Hit, Miss, MissReason
from feeds.cached.scripts import APPEND, Command
from feeds.cached.worker_connection import WorkerConnection
from feeds.movement import Movement, render
from feeds.queries import load_queries

SQL = load_queries(__file__)

PATIENCE_S = 1.0
"""How long the feeds' Redis may be away before its feeds are given up."""
RETRY_EVERY_S = 0.05
EPOCH_KNOWN_S = EPOCH_WITHIN_S + EPOCH_EVERY_S + EPOCH_WITHIN_S + 0.1
"""By when every reader whom Postgres answers in time knows of a new epoch: he may have asked just before it, rested,
and asked again. Less than the second after which another drain takes a batch that is posted, but not yet deleted, for
that of a dead one."""


class Published(NamedTuple):
    """What came of showing a batch. `epoch_renewed`: the feeds were given up instead."""

    appended: int = 0
    dropped: int = 0
    refused: int = 0
    epoch_renewed: bool = False


def show(
    link: WorkerConnection,
    connection: Connection[tuple[object, ...]],
    posted: Mapping[str, Sequence[Movement]],
    repeated: Collection[str] = (),
) -> Published:
    """Make the cached feeds show a batch. To be called after its commit, outside of any transaction.

    `posted`: each organisation's new movements in order of position; `repeated`: organisations with an event that
    was already posted, whose feeds are dropped as an earlier batch may not have been shown. After it
    returns every read shows the batch, so its entries may be deleted.
    """
    if not posted and not repeated:
        return Published()
    # The epoch as it was after the commit: whoever reads under a later one sees the batch in Postgres.
    epoch = read_epoch(connection)
    link.know(epoch, time.monotonic())
    while True:
        try:
            shown = append(link, epoch, {org: lines for org, lines in posted.items() if org not in repeated})
            dropped = drop(link, epoch, repeated)
        except FeedsAway:
            now = time.monotonic()
            link.away_since = link.away_since or now
            if now - link.away_since > PATIENCE_S:
                give_up(connection, epoch)
                return Published(epoch_renewed=True)
            time.sleep(RETRY_EVERY_S)
        else:
            link.away_since = None
            wait_for_readers(link)
            return shown._replace(dropped=dropped)


def wait_for_readers(link: WorkerConnection) -> None:
    """Wait, where somebody may just have begun a new epoch, until every reader knows: the old feeds lack this batch."""
    time.sleep(max(0.0, link.epoch_since + EPOCH_KNOWN_S - time.monotonic()))


def read_epoch(connection: Connection[tuple[object, ...]]) -> UUID:
    """Return the ledger's epoch as of now."""
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        epoch: UUID | None = cursor.execute(SQL["read_epoch"]).fetchone()
    assert epoch is not None, "migrate writes it"
    return epoch


def renew_epoch(connection: Connection[tuple[object, ...]], seen: UUID) -> None:
    """Begin a new epoch, unless another process has ended the one that was seen."""
    with connection.transaction():
        connection.execute(SQL["renew_epoch"], {"seen": seen})


def give_up(connection: Connection[tuple[object, ...]], epoch: UUID) -> None:
    """Never serve again what the feeds' Redis holds under an epoch, and wait until every reader knows."""
    renew_epoch(connection, epoch)
    time.sleep(EPOCH_KNOWN_S)


def append(
    link: WorkerConnection, epoch: UUID, posted: Mapping[str, Sequence[Movement]], window: int = WINDOW
) -> Published:
    """Append movements, in order of position, to those feeds that somebody reads."""
    if not posted:
        return Published()
    stamped = proof.stamp(epoch, link.server())
    keys = {org_id: proof.hash_key(stamped, org_id) for org_id in posted}
    exist = link.ask([("EXISTS", key) for key in keys.values()])
    warm = [org_id for org_id, exists in zip(keys, exist, strict=True) if exists]
    if not warm:
        return Published()
    replies = link.run(APPEND, [arguments(keys[org_id], posted[org_id], window) for org_id in warm])
    # Redis is full, or something else stands where a feed should: better none than an old one.
    refused = [org_id for org_id, reply in zip(warm, replies, strict=True) if isinstance(reply, redis.RedisError)]
    drop(link, epoch, refused)
    return Published(appended=len(warm) - len(refused), refused=len(refused))


def arguments(key: bytes, movements: Sequence[Movement], window: int) -> tuple[list[bytes], list[str | bytes | int]]:
    """Return keys and arguments of `append.lua`: each JSON once, with the feeds whose window it enters."""
    places: dict[int, list[int]] = {}
    for place, movement in enumerate(movements):
        for feed, ordinal in movement.ordinals.items():
            of_feed = places.setdefault(feed, [])
            # Two transactions may be shown at once, and another's lines may lie between theirs.
            if of_feed and ordinal != movements[of_feed[-1]].ordinals[feed] + 1:
                of_feed.clear()
            of_feed.append(place)
    used = sorted({place for feed in places for place in places[feed][-window:]})
    sent = {place: number for number, place in enumerate(used, 1)}
    start = proof.seed(key)
    keys = [key]
    values: list[str | bytes | int] = [window, len(places)]
    for feed, of_feed in places.items():
        keys.append(proof.list_key(key, feed))
        listed = ",".join(str(sent[place]) for place in of_feed[-window:])
        values += [feed, movements[of_feed[-1]].ordinals[feed], listed]
    return keys, [*values, *(proof.seal_json(start, render(movements[place])) for place in used)]


def drop(link: WorkerConnection, epoch: UUID, org_ids: Collection[str]) -> int:
    """Unlink all cached feeds of organisations; returns how many organisations had any."""
    if not org_ids:
        return 0
    stamped = proof.stamp(epoch, link.server())
    keys = [proof.hash_key(stamped, org_id) for org_id in sorted(org_ids)]
    fields = link.ask([("HKEYS", key) for key in keys])
    replies = link.ask([("UNLINK", key, *lists(key, held)) for key, held in zip(keys, fields, strict=True)])
    for reply in replies:
        if isinstance(reply, redis.RedisError):
            raise FeedsAway(str(reply))
    return sum(bool(reply) for reply in replies)


def look(link: WorkerConnection, epoch: UUID, org_id: str, feeds: Collection[int]) -> dict[int, Hit | Miss]:
    """Return what is cached of an organisation's feeds at one moment: all of their entries, newest first.

    Feeds without a count are left out. A list may be shorter than the window.
    """
    key = proof.hash_key(proof.stamp(epoch, link.server()), org_id)
    asked = sorted(feeds)
    commands: list[Command] = [("MULTI",), ("HMGET", key, *asked)]
    commands += [("LRANGE", proof.list_key(key, feed), 0, -1) for feed in asked]
    answer = link.ask([*commands, ("EXEC",)])[-1]
    if not isinstance(answer, list):
        raise FeedsAway(str(answer))
    counts, *entries = answer
    looked: dict[int, Hit | Miss] = {}
    for feed, sealed, listed in zip(asked, counts, entries, strict=True):
        total = proof.read_count(key, feed, sealed)
        if isinstance(total, int) and not isinstance(listed, list):
            looked[feed] = Miss(MissReason.CORRUPT)
        elif isinstance(total, int):
            looked[feed] = proof.prove_entries(key, total, listed, total)
        elif total.reason is not MissReason.COLD:
            looked[feed] = total
    return looked


def lists(key: bytes, fields: object) -> list[bytes]:
    """Return the keys of the lists that a hash with these fields counts."""
    if not isinstance(fields, list):
        return []
    return [proof.list_key(key, int(field)) for field in fields if field.isdigit()]
