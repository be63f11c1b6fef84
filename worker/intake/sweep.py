"""What does the passing of time ask for?

Once a second: drains where events wait, and `settle` events for grants whose start or end has come.
Time is another producer: what it adds takes the same path. Two sweeps at once, or one an hour late,
are harmless.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from psycopg import Connection
from redis import Redis

from feeds.queries import load_queries
from feeds.schema import Ledger
from worker.intake.batch import ENOUGH, order_of
from worker.intake.streams import AWAKE, add, shard_of, stream_of

SQL = load_queries(__file__)

SETTLES = "events:settles"
"""A hash of the organisations that were sent a `settle`, and when, in seconds of Redis's clock."""
SWEPT = "events:swept"
"""When a sweep last came to its end, in seconds of Redis's clock."""
UNANSWERED = 500
"""How many unanswered settles a shard may have."""
ASK_AGAIN_S = 10
STUCK_S = 1
HELPER_EXPIRES_S = 2
"""A drain that no free process has begun by then would help nobody."""

Wake = Callable[..., None]


def sweep(connection: Connection[Any], streams: Redis, ledger: Ledger, wake: Wake) -> None:
    """Wake drains where events wait, and send for what is due."""
    wake_drains(streams, ledger.event_shards, wake)
    if settle_due(connection, streams, ledger):
        wake()
    streams.set(SWEPT, now_s(streams))


def wake_drains(streams: Redis, event_shards: int, wake: Wake) -> None:
    """Wake a drain where events wait and nobody is awake, and helpers while there is a backlog.

    The key that says so is not believed once the oldest event is over a second old: whoever set
    it may have died before the wake was sent.
    """
    with streams.pipeline(transaction=False) as pipeline:
        pipeline.exists(AWAKE)
        for shard in range(event_shards):
            pipeline.xlen(stream_of(shard))
            pipeline.xrange(stream_of(shard), count=1)
        awake, *answers = pipeline.execute(raise_on_error=False)
    waiting = [(length, first) for length, first in zip(answers[::2], answers[1::2], strict=True) if is_waiting(first)]
    if not waiting:
        return
    oldest_ms = min(order_of(first[0][0].decode())[0] for _, first in waiting)
    if not awake:
        wake()
    elif now_s(streams) - oldest_ms / 1000 > STUCK_S:
        wake(HELPER_EXPIRES_S)
    for _ in range(min(len(waiting) - 1, sum(length for length, _ in waiting) // ENOUGH)):
        wake(HELPER_EXPIRES_S)


def is_waiting(first: object) -> bool:
    """Tell whether a shard answered with an entry: not with nothing, and not with an error."""
    return isinstance(first, list) and bool(first)


def settle_due(connection: Connection[Any], streams: Redis, ledger: Ledger) -> bool:
    """Add a `settle` for organisations that are due, a bounded number at a time; tell whether to wake a drain.

    An organisation that stays due was asked and has not been posted yet: it is asked again after a while.
    """
    due = find_due(connection, ledger)
    asked = {org_id.decode(): float(at) for org_id, at in hash_of(streams).items()}
    now = now_s(streams)
    unanswered = {org_id: asked[org_id] for org_id in due if org_id in asked and 0 <= now - asked[org_id] < ASK_AGAIN_S}
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
    """Return organisations with due grants, longest due first: as many as may be asked at once."""
    parameters = {"most": UNANSWERED * ledger.event_shards, "grace": timedelta(seconds=ledger.expiry_grace_s)}
    with connection.transaction(), connection.pipeline():
        connection.execute(SQL["bound_search"])
        due = connection.execute(SQL["find_due"], parameters)
    return [org_id for (org_id,) in due]


def choose(due: Sequence[str], unanswered: dict[str, float], event_shards: int) -> list[str]:
    """Return whom to ask now: no shard has more than its bound of unanswered settles."""
    load = Counter(shard_of(org_id, event_shards) for org_id in unanswered)
    chosen = []
    for org_id in due:
        shard = shard_of(org_id, event_shards)
        if org_id not in unanswered and load[shard] < UNANSWERED:
            load[shard] += 1
            chosen.append(org_id)
    return chosen


def hash_of(streams: Redis) -> dict[bytes, bytes]:
    """Return whom we asked, and when."""
    fields: Any = streams.hgetall(SETTLES)
    return dict(fields)


def now_s(streams: Redis) -> float:
    """Return Redis's clock, in seconds: the one that gives entries their ids."""
    answer: Any = streams.time()
    return float(answer[0] + answer[1] / 1e6)
