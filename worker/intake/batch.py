"""How is one batch taken from the streams: leased, read, posted, published and deleted?

A shard is leased by the row lock on its offset. It is read from its start and posted; the commit ends the lease. Then
the batch is published, and only then its entries are deleted. If a process dies at any point, the next drain finds
the entries that are left, and their refs make them a repeat that posts nothing.
"""

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any, NamedTuple

from psycopg import Connection
from redis import Redis
from redis.exceptions import RedisError

from feeds.database import begin
from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import EventRefused
from worker.intake import counters, poison
from worker.intake.failures import note_failures, queue_clearing
from worker.intake.poison import State, Suspicion, read_suspicion
from worker.intake.read_entries import parse_entries, queue_read
from worker.intake.rest import ENOUGH, find_rest
from worker.intake.streams import AWAKE, AWAKE_MS, order_of, stream_of
from worker.ledger.batch import Posted
from worker.ledger.dead_letters import bury
from worker.ledger.entries import Entry, Refusal
from worker.ledger.write import post_entries

SQL = load_queries(__file__)
NO_SKEW = timedelta()
SKEW_TOLERATED = timedelta(seconds=1)
"""By how much the clocks of Redis and Postgres may differ before the times of entries are corrected."""

Publish = Callable[[Connection[Any], Posted, bool], None]


class EventKillsProcess(EventRefused):
    """Posting it ended the process again and again. Examine it before it is replayed."""


class Outcome(Enum):
    """How the attempt to take a batch ended."""

    POSTED = auto()
    """A batch was posted."""
    LEFTOVERS = auto()
    """The shards hold only entries that another drain has just posted and will delete."""
    SURPLUS = auto()
    """No shard could be leased: other drains hold them, or nothing waits any more."""


class WaitingShard(NamedTuple):
    """A shard in which entries wait: how many, and what is known of its deaths."""

    shard: int
    length: int
    suspicion: Suspicion

    @property
    def batch_size(self) -> int:
        """Return how many of its entries the next batch takes."""
        return min(self.length, self.suspicion.batch_size)


class Lease(NamedTuple):
    """A shard that is ours until the transaction ends. `moved_recently`: its offset moved within the last second.

    `now` is the time of Postgres's clock.
    """

    shard: int
    last_entry_id: str
    moved_recently: bool
    now: datetime


class ShardBatch(NamedTuple):
    """What one shard gives to a batch.

    `is_repeat`: it begins at or below the offset. So it was posted before, unless Redis lost its data since: then it
    is new.
    """

    shard: int
    entries: list[Entry]
    suspicion: Suspicion
    is_repeat: bool


@dataclass(slots=True)
class Intake:
    """What a drain works with.

    Args:
        connection: To Postgres, in no transaction.
        streams: The streams' Redis.
        ledger: The facts of the ledger.
        publish: Puts posted movements into the cached feeds. Its last argument is true if a part of the batch may have
            been posted before: then the feeds of its organisations may lack movements and are dropped.
        wake: Requests a successor.
        name: The value of the awake key while this drain holds it.
        seen: The id up to which each shard was read, by shard.
        taken: How many entries this drain has taken.
        buried: How many of them became dead letters.
        rest_s: How long to rest before the next batch.
    """

    connection: Connection[Any]
    streams: Redis
    ledger: Ledger
    publish: Publish
    wake: Callable[[], None]
    name: bytes = field(default_factory=lambda: secrets.token_hex(8).encode())
    seen: dict[int, str] = field(default_factory=dict)
    taken: int = 0
    buried: int = 0
    rest_s: float = 0


def take_batch(intake: Intake, shards: Sequence[int]) -> Outcome:
    """Post one batch from those of these shards that no other drain holds; publish it; delete it.

    Raises psycopg.Error, redis.RedisError and PostingFails: nothing is lost, the next drain takes the same entries.
    """
    waiting = {shard.shard: shard for shard in find_waiting(intake, shards)}
    leased: list[WaitingShard] = []
    try:
        with begin(intake.connection):
            leases = lease(intake, list(waiting.values()))
            leased = [waiting[lease.shard] for lease in leases]
            if not leases:
                return Outcome.SURPLUS
            batch = read(intake, leases, waiting)
            if not batch:
                return Outcome.LEFTOVERS
            posted = post(intake, batch)
            move_offsets(intake, batch)
        intake.publish(intake.connection, posted, any(part.is_repeat for part in batch))
        finish(intake, batch)
    except BaseException as error:
        note_failure(intake, leased, error)
        raise
    counters.note_batch(posted)
    taken = sum(len(part.entries) for part in batch)
    intake.taken += taken
    intake.buried += len(posted.refusals)
    intake.rest_s = find_rest(posted, taken)
    return Outcome.POSTED


def find_waiting(intake: Intake, shards: Sequence[int]) -> list[WaitingShard]:
    """Return the shards in which entries wait, in random order, so that a busy shard does not starve the others."""
    order = random.sample(shards, len(shards))
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard in order:
            pipeline.xlen(stream_of(shard))
            pipeline.hgetall(poison.key_of(shard))
        replies = pipeline.execute(raise_on_error=False)
    pairs = zip(order, replies[::2], replies[1::2], strict=True)
    return [
        WaitingShard(shard, length, read_suspicion(fields))
        for shard, length, fields in pairs
        if isinstance(length, int) and length  # an error reply: the key is not a stream
    ]


def lease(intake: Intake, waiting: Sequence[WaitingShard]) -> list[Lease]:
    """Lease the shards of one batch; none if other drains hold them all."""
    groups = group_shards(waiting)
    for group in random.sample(groups, len(groups)):
        if leases := lock_offsets(intake, group):
            return leases
    return []


def group_shards(waiting: Sequence[WaitingShard]) -> list[list[int]]:
    """Return groups of shards that are each worth a batch: one group of all when it is quiet, several in a backlog.

    A shard with a death is a group of its own: the death of a batch is charged to all of its shards, and only the
    entry at fault may be buried.
    """
    groups = [[shard.shard] for shard in waiting if shard.suspicion.state is not State.CALM]
    group: list[int] = []
    entries = 0
    for shard in waiting:
        if shard.suspicion.state is State.CALM:
            group.append(shard.shard)
            entries += shard.batch_size
            if entries >= ENOUGH:
                groups.append(group)
                group, entries = [], 0
    return [*groups, group] if group else groups


def lock_offsets(intake: Intake, shards: list[int]) -> list[Lease]:
    """Lock the offsets of those shards that no other drain holds."""
    rows = intake.connection.execute(SQL["lock_offsets"], {"shards": shards})
    return [Lease(shard, last_entry_id, moved_recently, now) for shard, last_entry_id, moved_recently, now in rows]


def read(intake: Intake, leases: Sequence[Lease], waiting: Mapping[int, WaitingShard]) -> list[ShardBatch]:
    """Read the leased shards from their start. A batch counts as begun before it is read: reading may kill the process.

    Entries that another drain has posted within the last second are left to it: it has yet to publish and delete them.
    """
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard, *_ in leases:
            size = waiting[shard].batch_size
            poison.queue_note(pipeline, shard, waiting[shard].suspicion.start(size))
            queue_read(pipeline, shard, size)
        pipeline.set(AWAKE, intake.name, px=AWAKE_MS)
        pipeline.time()
        # A full Redis refuses the notes and the awake key, and must still be drained.
        replies = pipeline.execute(raise_on_error=False)
        batch, left = [], []
        clock_ahead = measure_skew(leases[0].now, replies[-1])
        for lease, reply in zip(leases, replies[1:-2:2], strict=True):
            suspicion = waiting[lease.shard].suspicion
            entries = parse_entries(lease.shard, reply, clock_ahead)
            if entries:
                intake.seen[lease.shard] = entries[-1].entry_id
            is_repeat = bool(entries) and order_of(entries[0].entry_id) <= order_of(lease.last_entry_id)
            if not entries or (is_repeat and lease.moved_recently):
                left.append((lease.shard, suspicion))
            else:
                batch.append(ShardBatch(lease.shard, entries, suspicion, is_repeat))
        if left:
            for shard, suspicion in left:
                poison.queue_note(pipeline, shard, suspicion)
            pipeline.execute(raise_on_error=False)
    return batch


def measure_skew(postgres_now: datetime, redis_time: Any) -> timedelta:
    """Return by how much Postgres's clock is ahead of Redis's, zero if they agree within `SKEW_TOLERATED`.

    The two are read one after the other, so a small difference means nothing.
    """
    if not isinstance(redis_time, tuple):
        return NO_SKEW
    skew = postgres_now - datetime.fromtimestamp(redis_time[0] + redis_time[1] / 1e6, UTC)
    return skew if abs(skew) > SKEW_TOLERATED else NO_SKEW


def post(intake: Intake, batch: Sequence[ShardBatch]) -> Posted:
    """Post the entries of a batch; bury an entry that is condemned for killing its process."""
    refusals, others = [], []
    for part in batch:
        if part.suspicion.state is State.CONDEMNED:
            [entry] = part.entries  # `Suspicion.batch_size` is 1
            refusals.append(Refusal(entry, EventKillsProcess("posting it ended the process three times")))
        else:
            others += part.entries
    if refusals:
        bury(intake.connection, refusals)
    posted = post_entries(intake.connection, intake.ledger, others)
    posted.refusals += refusals
    return posted


def note_failure(intake: Intake, leased: Sequence[WaitingShard], error: BaseException) -> None:
    """Note that a batch failed without a death, and why."""
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard in leased:
            poison.queue_note(pipeline, shard.shard, shard.suspicion)
        with suppress(RedisError):  # then it counts as a death, which only makes the next batches smaller
            pipeline.execute(raise_on_error=False)
    if isinstance(error, Exception):
        note_failures(intake.streams, [shard.shard for shard in leased], error)


def move_offsets(intake: Intake, batch: Sequence[ShardBatch]) -> None:
    """Store the id of each shard's last posted entry."""
    ids = [part.entries[-1].entry_id for part in batch]
    intake.connection.execute(SQL["move_offsets"], {"shards": [part.shard for part in batch], "last_entry_ids": ids})


def finish(intake: Intake, batch: Sequence[ShardBatch]) -> None:
    """Delete the entries that were read, by their ids.

    Not all up to the last id: after a loss of Redis's data newer events may have lower ids.
    """
    with intake.streams.pipeline(transaction=False) as pipeline:
        for part in batch:
            pipeline.xdel(stream_of(part.shard), *[entry.entry_id for entry in part.entries])
            poison.queue_note(pipeline, part.shard, part.suspicion.survive(len(part.entries)))
        queue_clearing(pipeline, [part.shard for part in batch])
        pipeline.execute()
