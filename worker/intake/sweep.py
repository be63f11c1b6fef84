"""What becomes due as time passes?

Once a second a sweep wakes drains if entries wait, and adds `settle` events for grants whose start or end has come.
Time is another producer: what it adds takes the same path. Two sweeps at once, or one that is an hour late, are
harmless.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from psycopg import Connection
from redis import Redis
from redis.exceptions import ResponseError

from feeds.database import begin
from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.intake.backlog import read_backlogs
from worker.intake.rest import ENOUGH
from worker.intake.streams import AWAKE, add, shard_of

SQL = load_queries(__file__)

SETTLES = "events:settles"
"""A hash of the organisations that were sent a `settle`, and when, in seconds of Redis's clock."""
SWEPT = "events:swept"
"""When a sweep last ended, in seconds of Redis's clock."""
UNANSWERED_MAX = 500
"""How many unanswered settles a shard may have."""
SEND_AGAIN_S = 10
STUCK_S = 1
HELPER_LIFE_S = 2
"""A helping drain that starts later than this after its wake ends at once: the backlog has changed."""
SWEEPING = "events:sweeping"
"""Set for half a second when a sweep begins. A sweep that finds it does nothing: sweeps may have piled up."""
SWEEP_AGAIN_MS = 500

Wake = Callable[..., None]


def sweep(connection: Connection[Any], streams: Redis, ledger: Ledger, wake: Wake) -> None:
    """Wake drains if entries wait, and send a `settle` to organisations with due grants.

    Does nothing if another sweep has just begun. `wake` sends the message that starts a drain. Its optional argument is
    the time of Redis's clock after which a helping drain is of no use.
    """
    with suppress(ResponseError):  # a full Redis refuses it
        if not streams.set(SWEEPING, 1, nx=True, px=SWEEP_AGAIN_MS):
            return
    wake_drains(streams, ledger.event_shards, wake)
    if settle_due(connection, streams, ledger):
        wake()
    streams.set(SWEPT, now_s(streams))


def wake_drains(streams: Redis, event_shards: int, wake: Wake) -> None:
    """Wake a drain if entries wait and none is awake, and helping drains while there is a backlog.

    The awake key is ignored once the first entry is over a second old: the process that set it may have died before
    it sent the message.
    """
    is_awake = streams.exists(AWAKE)
    waiting = [backlog for backlog in read_backlogs(streams, range(event_shards)) if backlog.length]
    if not waiting:
        return
    now = now_s(streams)
    if not is_awake:
        wake()
    elif max(backlog.age_s(now) for backlog in waiting) > STUCK_S:
        wake(now + HELPER_LIFE_S)
    for _ in range(min(len(waiting) - 1, sum(backlog.length for backlog in waiting) // ENOUGH)):
        wake(now + HELPER_LIFE_S)


def settle_due(connection: Connection[Any], streams: Redis, ledger: Ledger) -> bool:
    """Add a `settle` for due organisations, a bounded number at a time; returns whether a drain must be woken.

    An organisation that stays due has a `settle` that is not posted yet: another one is added after a while.
    """
    due = find_due(connection, ledger)
    sent = {org_id.decode(): float(sent_at) for org_id, sent_at in read_settles(streams).items()}
    now = now_s(streams)
    unanswered = {org_id: sent[org_id] for org_id in due if org_id in sent and 0 <= now - sent[org_id] < SEND_AGAIN_S}
    chosen = choose(due, unanswered, ledger.event_shards)
    with streams.pipeline(transaction=True) as pipeline:
        pipeline.delete(SETTLES)
        if pending := unanswered | dict.fromkeys(chosen, now):
            fields: dict[Any, Any] = pending
            pipeline.hset(SETTLES, mapping=fields)
        pipeline.execute()
    if not chosen:
        return False
    events = [(shard_of(org_id, ledger.event_shards), {"type": "settle", "org_id": org_id}) for org_id in chosen]
    return add(streams, [(shard, json.dumps(event).encode()) for shard, event in events])


def find_due(connection: Connection[Any], ledger: Ledger) -> list[str]:
    """Return organisations with due grants, longest due first, as far as their starts and ends fit the bound each.

    A standby refuses it, because what it knows may be old.
    """
    parameters = {"most": UNANSWERED_MAX * ledger.event_shards, "grace_s": ledger.expiry_grace_s}
    with begin(connection), connection.pipeline():
        connection.execute(SQL["bound_search"])
        due = connection.execute(SQL["find_due"], parameters)
    return [org_id for (org_id,) in due]


def choose(due: Sequence[str], unanswered: dict[str, float], event_shards: int) -> list[str]:
    """Return the organisations to settle now, so that no shard gets more than its bound of unanswered settles."""
    load = Counter(shard_of(org_id, event_shards) for org_id in unanswered)
    chosen = []
    for org_id in due:
        shard = shard_of(org_id, event_shards)
        if org_id not in unanswered and load[shard] < UNANSWERED_MAX:
            load[shard] += 1
            chosen.append(org_id)
    return chosen


def read_settles(streams: Redis) -> dict[bytes, bytes]:
    """Return the organisations that were sent a `settle`, and when."""
    fields: Any = streams.hgetall(SETTLES)
    return dict(fields)


def now_s(streams: Redis) -> float:
    """Return the time of Redis's clock, in seconds: the clock that gives entries their ids."""
    time: Any = streams.time()
    return float(time[0] + time[1] / 1e6)
