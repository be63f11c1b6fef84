"""How do committed movements get into the cached feeds?

This is the worker's side. Append and drop follow the commit; both may be repeated at any time.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

import redis
from psycopg import Connection

from feeds.cached.epoch import KNOWN_WITHIN_S, read_epoch, renew_epoch
from feeds.cached.format import (
    BALANCE,
    WINDOW,
    FeedsAway,
    Hit,
    Miss,
    MissReason,
    hash_key,
    list_key,
    make_stamp,
    read_count,
    seal_item,
    seed,
    validate_items,
)
from feeds.cached.scripts import APPEND, Command
from feeds.cached.worker_connection import WorkerConnection
from feeds.database import WRITING
from feeds.movement import Movement, render_item

PATIENCE_S = 1.0
"""How long the feeds' Redis may be away before a new epoch is started without it."""
RETRY_EVERY_S = 0.05
NO_REVISIONS: Mapping[str, int] = MappingProxyType({})


class Published(NamedTuple):
    """How many organisations' feeds a batch changed.

    `appended`: movements were added. `dropped`: the feeds were unlinked because they might lack earlier movements.
    `refused`: Redis refused the write, so the feeds were unlinked. `epoch_renewed`: Redis stayed away and a new epoch
    was started instead.
    """

    appended: int = 0
    dropped: int = 0
    refused: int = 0
    epoch_renewed: bool = False


def publish(
    feeds_redis: WorkerConnection,
    database: Connection[tuple[object, ...]],
    posted: Mapping[str, Sequence[Movement]],
    repeated: Collection[str] = (),
    revisions: Mapping[str, int] = NO_REVISIONS,
) -> Published:
    """Bring the cached feeds up to date with a committed batch. When it returns, every read includes the batch.

    Args:
        feeds_redis: The connection to the feeds' Redis.
        database: A connection to Postgres, outside of any transaction and after the commit.
        posted: Each organisation's new movements, in order of position.
        repeated: Organisations with an event that was already posted. Their feeds are dropped: an earlier batch may
            have died before it was published.
        revisions: The revision of each organisation in which a movement or a grant has changed.
    """
    if not posted and not repeated and not revisions:
        return Published()
    # Read after the commit: a reader that knows a later epoch finds the batch in Postgres.
    epoch = read_epoch(database, WRITING)  # PgBouncer may lead this transaction to a standby, whose epoch may be old
    feeds_redis.note_epoch(epoch, time.monotonic())
    changed = {**dict.fromkeys(revisions, ()), **posted}
    new = {org_id: movements for org_id, movements in changed.items() if org_id not in repeated}
    while True:
        try:
            published = append(feeds_redis, epoch, new, revisions)
            dropped = drop(feeds_redis, epoch, repeated)
        except FeedsAway:
            now = time.monotonic()
            feeds_redis.away_since = feeds_redis.away_since or now
            if now - feeds_redis.away_since > PATIENCE_S:
                start_new_epoch(database, epoch)
                return Published(epoch_renewed=True)
            time.sleep(RETRY_EVERY_S)
        else:
            feeds_redis.away_since = None
            wait_for_readers(feeds_redis)
            return published._replace(dropped=dropped)


def wait_for_readers(feeds_redis: WorkerConnection) -> None:
    """If the epoch may be new, wait until every reader knows it: the feeds of the old epoch lack this batch."""
    time.sleep(max(0.0, feeds_redis.epoch_since + KNOWN_WITHIN_S - time.monotonic()))


def start_new_epoch(database: Connection[tuple[object, ...]], ended: UUID) -> None:
    """Start a new epoch, and wait until every reader knows it: nothing cached before is served again."""
    renew_epoch(database, ended)
    time.sleep(KNOWN_WITHIN_S)


def append(
    feeds_redis: WorkerConnection,
    epoch: UUID,
    posted: Mapping[str, Sequence[Movement]],
    revisions: Mapping[str, int] = NO_REVISIONS,
    window: int = WINDOW,
) -> Published:
    """Append movements, in order of position, to the feeds that are cached, and drop older balances.

    Raises `FeedsAway`.
    """
    if not posted:
        return Published()
    stamp = make_stamp(epoch, feeds_redis.server())
    keys = {org_id: hash_key(stamp, org_id) for org_id in posted}
    exist = feeds_redis.send([("EXISTS", key) for key in keys.values()])
    require_no_error(exist)
    cached = [org_id for org_id, exists in zip(keys, exist, strict=True) if exists]
    if not cached:
        return Published()
    replies = feeds_redis.run_script(
        APPEND, [append_arguments(keys[org_id], posted[org_id], window, revisions.get(org_id)) for org_id in cached]
    )
    # Redis is full, or the key holds something else: no feed is better than an old one.
    refused = [org_id for org_id, reply in zip(cached, replies, strict=True) if isinstance(reply, redis.RedisError)]
    drop(feeds_redis, epoch, refused)
    return Published(appended=len(cached) - len(refused), refused=len(refused))


def append_arguments(
    key: bytes, movements: Sequence[Movement], window: int, revision: int | None = None
) -> tuple[list[bytes], list[str | bytes | int]]:
    """Return keys and arguments of `append.lua`: each item once, with the feeds whose window it enters.

    The feed of the balance gets a higher count and no item, so its old item is dropped.
    """
    indexes: dict[int, list[int]] = {}  # for each feed, which of the movements to append
    for index, movement in enumerate(movements):
        for feed, ordinal in movement.ordinals.items():
            of_feed = indexes.setdefault(feed, [])
            # Two transactions may be published together, and those of another process may lie between them.
            if of_feed and ordinal != movements[of_feed[-1]].ordinals[feed] + 1:
                of_feed.clear()
            of_feed.append(index)
    used = sorted({index for of_feed in indexes.values() for index in of_feed[-window:]})
    sent = {index: number for number, index in enumerate(used, 1)}
    start = seed(key)
    keys = [key]
    values: list[str | bytes | int] = [window, len(indexes) + (revision is not None)]
    for feed, of_feed in indexes.items():
        keys.append(list_key(key, feed))
        numbers = ",".join(str(sent[index]) for index in of_feed[-window:])
        values += [feed, movements[of_feed[-1]].ordinals[feed], numbers]
    if revision is not None:
        keys.append(list_key(key, BALANCE))
        values += [BALANCE, revision + 1, ""]
    return keys, [*values, *(seal_item(start, render_item(movements[index])) for index in used)]


def drop(feeds_redis: WorkerConnection, epoch: UUID, org_ids: Collection[str]) -> int:
    """Unlink all cached feeds of organisations; returns how many organisations had any. Raises `FeedsAway`."""
    if not org_ids:
        return 0
    stamp = make_stamp(epoch, feeds_redis.server())
    keys = [hash_key(stamp, org_id) for org_id in sorted(org_ids)]
    fields = feeds_redis.send([("HKEYS", key) for key in keys])
    replies = feeds_redis.send(
        [("UNLINK", key, *list_keys(key, of_hash)) for key, of_hash in zip(keys, fields, strict=True)]
    )
    require_no_error(replies)
    return sum(bool(reply) for reply in replies)


def require_no_error(replies: Sequence[object]) -> None:
    """Raise `FeedsAway` if a reply is an error: it says nothing about the key."""
    for reply in replies:
        if isinstance(reply, redis.RedisError):
            raise FeedsAway(str(reply))


def list_keys(key: bytes, fields: object) -> list[bytes]:
    """Return the keys of the lists whose counts are among a hash's fields."""
    if not isinstance(fields, list):
        return []
    return [list_key(key, int(field)) for field in fields if field.isdigit()]


def read_cached(
    feeds_redis: WorkerConnection, epoch: UUID, org_id: str, feeds: Collection[int]
) -> dict[int, Hit | Miss]:
    """Return an organisation's cached feeds at one moment: all of their items, newest first.

    Feeds without a count are left out. A list may be shorter than the window. Raises `FeedsAway`.
    """
    key = hash_key(make_stamp(epoch, feeds_redis.server()), org_id)
    numbers = sorted(feeds)
    commands: list[Command] = [("MULTI",), ("HMGET", key, *numbers)]
    commands += [("LRANGE", list_key(key, feed), 0, -1) for feed in numbers]
    answer = feeds_redis.send([*commands, ("EXEC",)])[-1]
    if not isinstance(answer, list):
        raise FeedsAway(str(answer))
    counts, *lists = answer
    cached: dict[int, Hit | Miss] = {}
    for feed, sealed, items in zip(numbers, counts, lists, strict=True):
        total = read_count(key, feed, sealed)
        if isinstance(total, int) and not isinstance(items, list):
            cached[feed] = Miss(MissReason.CORRUPT)
        elif isinstance(total, int):
            cached[feed] = validate_items(key, total, items, total)
        elif total.reason is not MissReason.COLD:
            cached[feed] = total
    return cached
