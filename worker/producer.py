"""What producers import: `Producer` adds events to the streams."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import Any, Literal, Self

from redis.exceptions import AskError, ClusterCrossSlotError, ClusterDownError

from feeds.addresses.broker import RabbitAddress, parse_broker
from feeds.addresses.redis import RedisAddress, cluster_refused, parse_redis
from feeds.identifiers import USAGE_KINDS_DEFAULT, split_usage_kinds
from feeds.state import read_addresses
from worker.broker.waker import RabbitWaker, RedisWaker
from worker.events import Event, check_event
from worker.intake import streams

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 1000
EVENT_SHARDS_MAX = 1024
SETTINGS = {"redis_url", "celery_broker_url", "event_shards", "usage_kinds"}
"""What is read from the environment, in lower case."""
OF_A_CLUSTER = (AskError, ClusterCrossSlotError, ClusterDownError)
"""What a node of a Redis Cluster replies, MOVED among them, if keys belong to another node or to several."""
WAKE_PAUSE_S = 10.0
"""For how long no wake is tried after one has failed: each may take seconds, and the sweep wakes a drain too."""


class Producer:
    """Adds events to the streams, after it has checked them. Thread-safe; close it, or use `with`.

    An event is accepted when the method has returned. Each method raises EventInvalid for a bad event, before
    anything is sent, and redis.RedisError if the streams refuse the events or cannot be reached. Then send the same
    events again: that is harmless, because every usage and grant has its ref. If the events are added and only the
    wake of a worker fails, the method logs a warning and returns.

    It fails in time. To connect may take 2 s, and each reply 2 s: so if Redis is away, a method raises within 4 s. (The
    options `socket_connect_timeout` and `socket_timeout` of `redis_url` change that; a host name adds the time of its
    resolver, and 2 s for each further address.) If only the broker is away, one call in 10 s takes up to 8 s longer.

    It is a guest in its process. It uses no Celery app and changes nothing outside itself. It connects when it first
    sends, and again after a fork. It can be used under gevent and eventlet, if they patch before it is imported.

    Args:
        redis_url: The streams' Redis. Default: REDIS_URL, else that of a running `up`.
        broker_url: Celery's broker. Default: `redis_url` if that is passed; else CELERY_BROKER_URL, else that of a
            running `up`, else the streams' Redis.
        event_shards: The ledger's number of shards. Default: EVENT_SHARDS, else that of a running `up`, else 8.
        usage_kinds: The ledger's usage kinds. Default: USAGE_KINDS, else those of a running `up`, else the two built
            in.

    Raises:
        ValueError: An address or a number cannot be used, or there is no address. The first method that sends raises
            it too, if the streams' Redis is a node of a Redis Cluster.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        broker_url: str | None = None,
        event_shards: int | None = None,
        usage_kinds: Sequence[str] | None = None,
    ) -> None:
        found = read_environment()
        redis, self._variable = find_redis(redis_url, found)
        self.event_shards = read_shards(found.get("event_shards", 8) if event_shards is None else event_shards)
        self.usage_kinds = read_kinds(found.get("usage_kinds") if usage_kinds is None else usage_kinds)
        is_passed = self._variable == "redis_url"
        broker = find_broker(broker_url, None if is_passed else found.get("celery_broker_url")) or redis
        self._streams = streams.connect(redis)
        self._waker: RedisWaker | RabbitWaker
        if isinstance(broker, RabbitAddress):
            self._waker = RabbitWaker(broker)
        else:
            self._waker = RedisWaker(self._streams if broker == redis else streams.connect(broker))
        self._no_wake_before = 0.0

    def usage(  # noqa: PLR0913, PLR0917 -- the event's own fields
        self,
        org_id: str,
        usage_ref: str,
        usage_kind: str,
        credits: int,  # noqa: A002 -- the event's own field
        occurred_at: datetime | str | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Add a usage of `credits`, a whole number from 0. Without `occurred_at` it happened when it was added.

        `labels` say what the ledger should keep with it, such as `{"user": "ann"}`: at most 8 pairs.
        """
        fields = {"usage_ref": usage_ref, "usage_kind": usage_kind, "credits": credits}
        self.send([{"type": "usage", "org_id": org_id, **fields, "occurred_at": occurred_at, "labels": labels}])

    def grant(  # noqa: PLR0913, PLR0917 -- the event's own fields
        self,
        org_id: str,
        grant_ref: str,
        credits: int,  # noqa: A002
        source: Literal["plan", "promotion"],
        priority: int = 50,
        effective_at: datetime | str | None = None,
        expires_at: datetime | str | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Add a grant. A lower `priority` (0 to 100) is drawn first.

        Without `effective_at` the grant has no lower bound: it also pays for usage from before it existed, if it is
        posted before that usage. A grant with `effective_at` never pays for usage from before that moment.
        `labels` are those of `usage`.
        """
        fields = {"credits": credits, "source": source, "priority": priority, "labels": labels}
        times = {"effective_at": effective_at, "expires_at": expires_at}
        self.send([{"type": "grant", "org_id": org_id, "grant_ref": grant_ref, **fields, **times}])

    def revoke(self, org_id: str, grant_ref: str, reason: str | None = None) -> None:
        """Add a revoke: what remains of the grant is clawed back."""
        self.send([{"type": "revoke", "org_id": org_id, "grant_ref": grant_ref, "reason": reason}])

    def send(self, events: Iterable[Event | dict[str, Any]]) -> None:
        """Add events in this order, a thousand in each round trip. All are checked before the first is sent."""
        checked = [check_event(event, self.usage_kinds) for event in events]
        for start in range(0, len(checked), EVENTS_AT_ONCE):
            self._add(checked[start : start + EVENTS_AT_ONCE])

    def _add(self, events: Sequence[Event]) -> None:
        placed = [
            (
                streams.shard_of(event.org_id, self.event_shards),
                event.model_dump_json(exclude_none=True).encode(),
            )
            for event in events
        ]
        try:
            is_wake_due = streams.add(self._streams, placed)
        except OF_A_CLUSTER:
            raise cluster_refused(self._variable) from None
        if is_wake_due and monotonic() >= self._no_wake_before:
            self._wake()

    def _wake(self) -> None:
        """Wake a drain. It never raises: the events are added, and the caller must not add them again."""
        try:
            self._waker.wake()
        except Exception as error:  # noqa: BLE001 -- the reason is above
            self._no_wake_before = monotonic() + WAKE_PAUSE_S
            reason = type(error).__name__
            log.warning("The events are added, but no worker could be woken; the next sweep wakes one: %s", reason)

    def close(self) -> None:
        """Close the connections."""
        self._streams.close()
        self._waker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_environment() -> Mapping[str, str]:
    """Return our settings from a running `up` and the environment: names in lower case. Blank values are absent."""
    found = {**read_addresses(), **{name.lower(): value.strip() for name, value in os.environ.items() if value.strip()}}
    return {name: value for name, value in found.items() if name in SETTINGS}


def find_redis(given: str | None, found: Mapping[str, str]) -> tuple[RedisAddress, str]:
    """Return the streams' address, and what it comes from. Raises ValueError."""
    if given and given.strip():
        return parse_redis(given, "redis_url"), "redis_url"
    if "redis_url" not in found:
        raise ValueError("REDIS_URL is not set and no `usage-feeds up` is running: pass redis_url, or set REDIS_URL")
    return parse_redis(found["redis_url"]), "REDIS_URL"


def find_broker(given: str | None, found: str | None) -> RedisAddress | RabbitAddress | None:
    """Return the broker's address: the one that was passed, else that of the environment, else None.

    Raises ValueError.
    """
    if given and given.strip():
        return parse_broker(given, "broker_url")
    return parse_broker(found) if found else None


def read_shards(given: int | str) -> int:
    """Return the number of shards. Raises ValueError."""
    try:
        shards = int(given)
    except (TypeError, ValueError):
        shards = 0
    if not 1 <= shards <= EVENT_SHARDS_MAX:
        raise ValueError(f"EVENT_SHARDS must be a whole number from 1 to {EVENT_SHARDS_MAX}: set that of the ledger")
    return shards


def read_kinds(given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return the usage kinds of a list, or of a text with commas. Raises ValueError if there is none."""
    if given is None:
        return USAGE_KINDS_DEFAULT
    kinds = split_usage_kinds(given if isinstance(given, str) else ",".join(given))
    if not kinds:
        raise ValueError("USAGE_KINDS names no usage kind: set those of the ledger")
    return kinds
