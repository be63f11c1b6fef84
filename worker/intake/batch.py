"""How do events come from the streams into the ledger?

A shard is leased by its offset's row lock, read from its start, posted, shown, and only then
deleted: wherever a process dies, the next drain finds what is left, and the refs make it a repeat.
"""

import random
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from time import monotonic, sleep
from typing import Any, NamedTuple

from psycopg import Connection
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.events import EventRefused
from worker.intake import counters as counts
from worker.intake import poison as suspects
from worker.intake.poison import Suspicion, read_suspicion
from worker.intake.streams import AWAKE, AWAKE_MS, stream_of
from worker.ledger.entries import Entry, Refusal, bury
from worker.ledger.write import Posted, post_entries

SQL = load_queries(__file__)
LOOK_AGAIN_S = 0.02
ENOUGH = 500
"""How many entries make a batch worth its commit: shards are added until there are as many."""


Show = Callable[[Connection[Any], Posted, bool], None]


class EventKills(EventRefused):
    """Posting it ended the process, again and again. Look at it before it is replayed."""


class Outcome(Enum):
    """What became of one look at the streams."""

    POSTED = auto()
    LEFTOVERS = auto()
    SURPLUS = auto()


class Lease(NamedTuple):
    """A shard that is ours until the transaction ends. `fresh`: its offset moved within a second."""

    shard: int
    last_entry_id: str
    fresh: bool


class Taken(NamedTuple):
    """What a shard gives to a batch. `repeated`: it begins at or below the offset."""

    shard: int
    entries: list[Entry]
    before: Suspicion
    repeated: bool


@dataclass(slots=True)
class Intake:
    """What a drain works with.

    `show` puts what was posted into the feeds; the flag says that feeds of the batch's
    organisations may lack earlier lines and are to be dropped. `wake` sends for a successor.
    """

    connection: Connection[Any]
    streams: Redis
    ledger: Ledger
    show: Show
    wake: Callable[[], None]
    name: bytes = field(default_factory=lambda: secrets.token_hex(8).encode())
    seen: dict[int, str] = field(default_factory=dict)
    posted: int = 0
    buried: int = 0


def drain(intake: Intake, until: float) -> None:
    """Post what waits in the streams, and show it, until `until` on the monotonic clock.

    Where others hold all that waits, it leaves at once. Raises psycopg.Error and
    redis.RedisError: nothing is lost, the next drain goes on.
    """
    shards = usable_shards(intake)
    while (left_s := until - monotonic()) > 0:
        waiting = wait(intake, shards, left_s)
        outcome = take_batch(intake, waiting) if waiting else None
        if outcome is Outcome.SURPLUS:
            return
        if outcome is Outcome.LEFTOVERS:
            sleep(LOOK_AGAIN_S)
    leave(intake, shards)
    counts.add_pending(intake.streams)


def drain_all(intake: Intake) -> None:
    """Post what waits in the streams until nothing does; what others have just posted is left to them."""
    shards = usable_shards(intake)
    while waiting := [shard for shard, length in lengths(intake, shards).items() if length]:
        if take_batch(intake, waiting) is not Outcome.POSTED:
            wait(intake, shards, 0.1)
    counts.add_pending(intake.streams)


def usable_shards(intake: Intake) -> list[int]:
    """Return the shards whose key is a stream, or nothing yet; `verify` reports the others."""
    shards = range(intake.ledger.event_shards)
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard in shards:
            pipeline.type(stream_of(shard))
        types = pipeline.execute()
    return [shard for shard, type_ in zip(shards, types, strict=True) if type_ in {b"stream", b"none"}]


def lengths(intake: Intake, shards: Iterable[int]) -> dict[int, int]:
    """Return how many entries each shard holds."""
    asked = list(shards)
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard in asked:
            pipeline.xlen(stream_of(shard))
        return dict(zip(asked, pipeline.execute(), strict=True))


def wait(intake: Intake, shards: Iterable[int], left_s: float) -> list[int]:
    """Wait until a shard holds an entry that was not seen yet; return those shards.

    From the ids last seen: else what another drain has posted, and not yet deleted, makes this one spin.
    """
    by_key = {stream_of(shard).encode(): shard for shard in shards}
    ids: dict[Any, Any] = {key: intake.seen.get(shard, "0-0") for key, shard in by_key.items()}
    found: Any = intake.streams.xread(ids, count=1, block=max(1, int(left_s * 1000)))
    return [by_key[key] for key, _ in found or []]


def take_batch(intake: Intake, waiting: list[int]) -> Outcome:
    """Post one batch from those waiting shards that nobody else holds; show it; delete it."""
    known = look(intake, waiting)
    taken: list[Taken] = []
    try:
        with intake.connection.transaction():
            leases = lease(intake, known)
            if not leases:
                return Outcome.SURPLUS
            taken = read(intake, leases, known)
            if not taken:
                return Outcome.LEFTOVERS
            posted = post(intake, taken)
            move_offsets(intake, taken)
        intake.show(intake.connection, posted, any(part.repeated for part in taken))
        finish(intake, taken)
    except BaseException:
        take_back(intake, taken)
        raise
    counts.note_batch(posted)
    intake.posted += sum(len(part.entries) for part in taken)
    intake.buried += len(posted.refusals)
    return Outcome.POSTED


def look(intake: Intake, waiting: list[int]) -> dict[int, tuple[int, Suspicion]]:
    """Return, in random order, how many entries the shards hold, and whom they suspect."""
    order = random.sample(waiting, len(waiting))
    with intake.streams.pipeline(transaction=False) as pipeline:
        for shard in order:
            pipeline.xlen(stream_of(shard))
            pipeline.hgetall(suspects.key_of(shard))
        answers = pipeline.execute(raise_on_error=False)
    pairs = zip(order, answers[::2], answers[1::2], strict=True)
    return {shard: (length, read_suspicion(fields)) for shard, length, fields in pairs if is_waiting(length)}


def is_waiting(length: object) -> bool:
    """Tell whether a shard answered that it holds something: not zero, and not an error."""
    return isinstance(length, int) and length > 0


def lease(intake: Intake, known: dict[int, tuple[int, Suspicion]]) -> list[Lease]:
    """Lease as many shards as a batch needs: all when it is quiet, one when there is a backlog."""
    group: list[int] = []
    entries = 0
    for shard, (length, before) in known.items():
        group.append(shard)
        entries += min(length, before.batch)
        if entries >= ENOUGH:
            if leases := lock_offsets(intake, group):
                return leases
            group, entries = [], 0
    return lock_offsets(intake, group) if group else []


def lock_offsets(intake: Intake, shards: list[int]) -> list[Lease]:
    """Lock the offsets of those shards that no other drain holds."""
    return [Lease(*row) for row in intake.connection.execute(SQL["lock_offsets"], {"shards": shards})]


def read(intake: Intake, leases: list[Lease], known: dict[int, tuple[int, Suspicion]]) -> list[Taken]:
    """Read the leased shards from their start, and note that posting begins.

    A shard whose first entry was posted, but not yet deleted, by a drain of this second is left to it.
    """
    taken = []
    with intake.streams.pipeline(transaction=False) as pipeline:
        for part in leases:
            pipeline.xrange(stream_of(part.shard), count=known[part.shard][1].batch)
        answers = pipeline.execute()
        for part, rows in zip(leases, answers, strict=True):
            if not rows:
                continue
            entries = make_entries(part.shard, rows)
            intake.seen[part.shard] = entries[-1].entry_id
            repeated = order_of(entries[0].entry_id) <= order_of(part.last_entry_id)
            if not (repeated and part.fresh):
                taken.append(Taken(part.shard, entries, known[part.shard][1], repeated))
                suspects.begin(pipeline, part.shard, known[part.shard][1], len(entries))
        pipeline.set(AWAKE, intake.name, px=AWAKE_MS)
        pipeline.execute(raise_on_error=False)  # a full Redis refuses both, and must still be drained
    return taken


def make_entries(shard: int, rows: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
    """Return entries as Redis gave them; one without the field `event` is empty, and buried as such."""
    stream = stream_of(shard)
    return [Entry(stream, entry_id.decode(), fields.get(b"event", b"")) for entry_id, fields in rows]


def order_of(entry_id: str) -> tuple[int, int]:
    """Return what Redis orders entries by."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


def post(intake: Intake, taken: list[Taken]) -> Posted:
    """Post what was taken; an entry that keeps killing its process is buried instead."""
    guilty = [part.entries[0] for part in taken if part.before.guilty]
    refusals = [Refusal(entry, EventKills("posting it ended the process three times")) for entry in guilty]
    if refusals:
        bury(intake.connection, refusals)
    innocent = [entry for part in taken if not part.before.guilty for entry in part.entries]
    posted = post_entries(intake.connection, intake.ledger, innocent)
    posted.refusals += refusals
    return posted


def take_back(intake: Intake, taken: list[Taken]) -> None:
    """Note that a batch failed, but did not die."""
    with intake.streams.pipeline(transaction=False) as pipeline:
        for part in taken:
            suspects.end(pipeline, part.shard, part.before)
        try:
            pipeline.execute(raise_on_error=False)
        except RedisError:
            return  # counted as a death, and three of those only make smaller batches


def move_offsets(intake: Intake, taken: list[Taken]) -> None:
    """Say how far we have come."""
    ids = [part.entries[-1].entry_id for part in taken]
    intake.connection.execute(SQL["move_offsets"], {"shards": [part.shard for part in taken], "last_entry_ids": ids})


def finish(intake: Intake, taken: list[Taken]) -> None:
    """Delete exactly what was read: after a wipe newer events may bear lower ids."""
    with intake.streams.pipeline(transaction=False) as pipeline:
        for part in taken:
            pipeline.xdel(stream_of(part.shard), *[entry.entry_id for entry in part.entries])
            suspects.end(pipeline, part.shard, part.before.survive(len(part.entries)))
        pipeline.execute()


def leave(intake: Intake, shards: list[int]) -> None:
    """Give up the awake key if it is ours, look once more, and wake a successor if anything waits."""
    holder = intake.streams.get(AWAKE)
    if holder not in {None, intake.name}:
        return  # another drain is at work, or a wake is on its way
    intake.streams.delete(AWAKE)
    if any(lengths(intake, shards).values()):
        with suppress(ResponseError):  # a full Redis refuses it
            intake.streams.set(AWAKE, "successor", nx=True, px=AWAKE_MS)
        intake.wake()
