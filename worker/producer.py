"""What producers import: `Producer` adds events to the streams."""

import logging
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from feeds.identifiers import USAGE_KINDS_DEFAULT
from feeds.state import read_addresses
from worker.broker.app import make_app, wake
from worker.events import Event, check_event
from worker.intake import streams

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 1000


class Producer:
    """Adds events to the streams, after it has checked them. Thread-safe; close it, or use `with`.

    An event is accepted when the method has returned. Each method raises EventInvalid for a bad event, before
    anything is sent, and redis.RedisError if the streams refuse the events or cannot be reached. Then send the same
    events again: that is harmless, because every usage and grant has its ref.

    Args:
        redis_url: The streams' Redis. Default: REDIS_URL, else that of a running `up`. broker_url: Celery's broker.
        Default: CELERY_BROKER_URL, else that of a running `up`, else `redis_url`. event_shards: The ledger's number
        of shards. Default: EVENT_SHARDS, else that of a running `up`, else 8. usage_kinds: The ledger's usage kinds.
        Default: USAGE_KINDS, else those of a running `up`, else the two built in.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        broker_url: str | None = None,
        event_shards: int | None = None,
        usage_kinds: Sequence[str] | None = None,
    ) -> None:
        found = {**read_addresses(), **{name.lower(): value for name, value in os.environ.items() if value}}
        redis_url = redis_url or found.get("redis_url")
        if not redis_url:
            raise ValueError(
                "REDIS_URL is not set and no `usage-feeds up` is running: pass redis_url, or set REDIS_URL"
            )
        self.event_shards = event_shards or int(found.get("event_shards", 8))
        self.usage_kinds = tuple(usage_kinds or found.get("usage_kinds", ",".join(USAGE_KINDS_DEFAULT)).split(","))
        self._streams = streams.connect(redis_url)
        self._app = make_app(broker_url or found.get("celery_broker_url") or redis_url)

    def usage(
        self,
        org_id: str,
        usage_ref: str,
        usage_kind: str,
        credits: int,  # noqa: A002 -- the event's own field
        occurred_at: datetime | str | None = None,
    ) -> None:
        """Add a usage of `credits`, a whole number from 0. Without `occurred_at` it happened when it was added."""
        fields = {"usage_ref": usage_ref, "usage_kind": usage_kind, "credits": credits, "occurred_at": occurred_at}
        self.send([{"type": "usage", "org_id": org_id, **fields}])

    def grant(  # noqa: PLR0913, PLR0917 -- the event's own fields
        self,
        org_id: str,
        grant_ref: str,
        credits: int,  # noqa: A002
        source: Literal["plan", "promotion"],
        priority: int = 50,
        effective_at: datetime | str | None = None,
        expires_at: datetime | str | None = None,
    ) -> None:
        """Add a grant. A lower `priority` (0 to 100) is drawn first.

        Without `effective_at` the grant has no lower bound: it also pays for usage from before it existed, if it is
        posted before that usage. A grant with `effective_at` never pays for usage from before that moment.
        """
        fields = {"credits": credits, "source": source, "priority": priority}
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
        if streams.add(self._streams, placed):
            try:
                wake(self._app)
            except (OperationalError, RedisError):
                log.warning(
                    "The events are added, but no worker could be woken: the broker is away. The next sweep wakes one."
                )

    def close(self) -> None:
        """Close the connections."""
        self._streams.close()
        self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
