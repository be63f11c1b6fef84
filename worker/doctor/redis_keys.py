"""Which keys lie in this Redis database: only ours, or also those of another application or another ledger?

A sample is looked at, and nothing of a key's name is shown but what stands before its first separator: the rest may be
a secret, such as a session's id.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from worker.broker.app import DRAINS, EVENTS
from worker.broker.transport import CONSUMERS, HELD, PRIORITY_STEPS
from worker.doctor.finding import Finding, fine, list_names, mend, note

SAMPLE_MAX = 10_000
ROUNDS_MAX = 100
STREAM = re.compile(r"events:\{(\d+)\}")
FEED = re.compile(r"feeds:([^:]*):")
KOMBU = "\\x06\\x16"
"""Stands between a queue's name and a priority, in the key of a list."""
OURS = re.compile(
    rf"events(:.*|{KOMBU}\d)?|movements:.*|feeds:.*|limits:.*|drains({KOMBU}\d)?"
    r"|unacked(_index|_mutex|_restore.*)?|_kombu\.binding(_deadlines|(_permanent)?\.(events|drains|celeryev|.*pidbox))|.*\.pidbox|celeryev.*",
    re.DOTALL,
)
"""The keys of usage-feeds, and those that every Celery program has."""
OLD_S = 600
"""A message that was taken so long ago, and neither acknowledged nor returned, is forgotten."""


class Keys(NamedTuple):
    """A sample of the keys, and whether it holds all of them."""

    names: Sequence[str]
    is_complete: bool


class Leftovers(NamedTuple):
    """Messages that may be waiting for no consumer.

    `queued`: in the queue `events`. `prioritised`: in lists of `drains` for priorities, which no worker reads.
    `old`: taken long ago in kombu's way. `orphans`: lists of consumers that are no longer known.
    """

    queued: int
    prioritised: int
    old: int
    orphans: int


def read_keys(client: Redis) -> Keys | None:
    """Return a sample of the keys, None if SCAN is refused."""
    names: list[str] = []
    cursor = 0
    try:
        for _ in range(ROUNDS_MAX):
            cursor, found = client.scan(cursor, count=1000)
            names += map(text_of, found)
            if cursor == 0 or len(names) >= SAMPLE_MAX:
                break
    except ResponseError:
        return None
    return Keys(names, cursor == 0)


def text_of(name: bytes | str) -> str:
    """Return a key's name as text, whatever its bytes are."""
    return name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")


def judge_keys(keys: Keys | None) -> list[Finding]:
    """Judge whether other applications use this database."""
    if keys is None:
        what = "The keys cannot be looked at: SCAN is refused."
        why = "Another application in the same database could evict, delete or fill up what usage-feeds needs."
        return [note("keys", what, why, "Give usage-feeds a database of its own.")]
    looked = f"{len(keys.names):,}{'' if keys.is_complete else ' sampled'} key{'' if len(keys.names) == 1 else 's'}"
    foreign = Counter(start_of(name) for name in keys.names if not OURS.fullmatch(name))
    if not foreign:
        return [fine("keys", f"{looked}, all of usage-feeds and its Celery.")]
    starts = [start for start, _ in foreign.most_common()]
    return [
        note(
            "keys",
            f"{foreign.total():,} of {looked} belong to another application ({list_names(starts)}).",
            "A FLUSHDB of one deletes the other's data, and either can use up the memory of both.",
            "Give usage-feeds a Redis of its own, or at least a database of its own.",
        )
    ]


def start_of(name: str) -> str:
    """Return what a key's name begins with. A name without a separator is not shown."""
    found = re.match(r"([A-Za-z][A-Za-z0-9]{1,19}|_kombu\.binding(?:_permanent)?)[:._/\-]", name)
    return f"{found[0]}*" if found else "names without a prefix"


def judge_streams(keys: Keys | None, event_shards: int) -> list[Finding]:
    """Judge whether there are streams of shards that the ledger does not have."""
    numbers = {int(found[1]) for name in (keys.names if keys else ()) if (found := STREAM.fullmatch(name))}
    stray = sorted(number for number in numbers if number >= event_shards)
    if not stray:
        return []
    numbers_text = list_names([str(number) for number in stray])
    return [
        mend(
            "shards",
            f"There are streams of shards that the ledger does not have: {numbers_text}.",
            f"No worker reads them. The ledger has {event_shards} shards: a producer has another EVENT_SHARDS.",
            f"Set EVENT_SHARDS={event_shards} for every producer, and add the events of these streams again.",
        )
    ]


def judge_stamps(keys: Keys | None, stamp: str) -> list[Finding]:
    """Judge whether feeds of another ledger lie here. `stamp` is the one in the keys of this ledger's feeds."""
    others = {found[1] for name in (keys.names if keys else ()) if (found := FEED.match(name))} - {stamp}
    if not others:
        return []
    return [
        note(
            "stamps",
            f"There are cached feeds of {len(others)} other epoch{'' if len(others) == 1 else 's'} or ledgers.",
            "Feeds of an earlier epoch disappear within 10 minutes. If they stay, another usage-feeds ledger uses this"
            " database: then the workers of both take each other's events.",
            "Look again in 10 minutes. If they are still here, give each ledger a Redis database of its own.",
        )
    ]


def read_leftovers(client: Redis, keys: Keys | None) -> Leftovers | None:
    """Return the messages that may be waiting for no consumer, None if the user may not look."""
    held = [name for name in (keys.names if keys else ()) if name.startswith(HELD)]
    try:
        seconds, _ = client.time()
        old = client.zcount("unacked_index", "-inf", seconds - OLD_S)
        queued = client.llen(EVENTS)
        prioritised = sum(client.llen(f"{DRAINS}\x06\x16{step}") for step in PRIORITY_STEPS)
        known = {HELD + text_of(consumer) for consumer in client.hkeys(CONSUMERS)}
        # Still there: a consumer that has ended since the keys were read has returned its messages.
        orphans = sum(client.llen(name) for name in held if name not in known)
    except ResponseError:
        return None
    return Leftovers(queued, prioritised, old, orphans)


def judge_leftovers(leftovers: Leftovers | None) -> list[Finding]:
    """Judge the messages that may be waiting for no consumer."""
    if leftovers is None:
        what = "The queues cannot be looked at."
        why = "Messages may be waiting for no consumer."
        return [note("queues", what, why, "Look with a user that may read them.")]
    found = []
    if leftovers.orphans:
        what = f"{leftovers.orphans:,} messages are held by consumers that are not known."
        why = "No worker returns them to the queue, so their events are not posted."
        to_do = f"For each key {HELD}*, move its messages back: LMOVE KEY {EVENTS} LEFT RIGHT."
        found.append(mend("queues", what, why, to_do))
    if leftovers.old:
        what = f"{leftovers.old:,} messages were taken more than 10 minutes ago, and not acknowledged."
        why = "Their worker died, and no worker has returned them."
        found.append(note("queues", what, why, "Start a worker, and look again in 5 minutes."))
    if leftovers.prioritised:
        what = f"{leftovers.prioritised:,} messages in queue `{DRAINS}` have a priority."
        why = "No worker reads them. They only wake drains, so no event is lost."
        found.append(
            note("queues", what, why, f"Send nothing to `{DRAINS}`; events go to `{EVENTS}`. Delete these lists.")
        )
    return found or [fine("queues", f"{leftovers.queued:,} messages wait in queue `{EVENTS}`.")]
