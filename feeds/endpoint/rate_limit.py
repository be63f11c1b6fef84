"""May a key with a rate make a request now?

Each such key has a token bucket in the feeds' Redis, shared by all processes. It refills by `rate` tokens a second and
holds as many. While Redis is away each process has buckets of its own.
"""

import time
from pathlib import Path
from uuid import UUID

from feeds import counters
from feeds.bounded_map import BoundedMap
from feeds.cached.format import FeedsAway
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.scripts import load_script
from feeds.endpoint.errors import RateLimited

LIMIT = load_script(Path(__file__).with_suffix(".lua"))
BUCKET_S = 1.0
"""How many seconds' tokens a bucket holds."""
KEYS_MAX = 10_000
"""For how many keys a process remembers a refusal, or has a bucket."""


class RateLimiter:
    """The token buckets of keys, as one process uses them."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self._refused_until: BoundedMap[UUID, float] = BoundedMap(KEYS_MAX)
        self._full_at: BoundedMap[UUID, float] = BoundedMap(KEYS_MAX)

    def raise_if_refused(self, key_id: UUID) -> None:
        """Raise `RateLimited` for a key until its next token is due: a flood costs no round trip and no page."""
        now = time.monotonic()
        until = self._refused_until.get(key_id, 0.0)
        if now < until:
            counters.limits["kept"] += 1
            raise RateLimited(until - now)

    async def take(self, key_id: UUID, rate: int) -> None:
        """Take one token, in one round trip. Raises `RateLimited`."""
        self.raise_if_refused(key_id)
        wait_s = await self._take_from_redis(key_id, rate)
        if wait_s > 0:
            self._refused_until.store(key_id, time.monotonic() + wait_s)
            raise RateLimited(wait_s)

    async def _take_from_redis(self, key_id: UUID, rate: int) -> float:
        """Take a token; returns 0, or in how many seconds there is one."""
        try:
            wait_us = await self._multiplexer.run_script(LIMIT, [b"limits:{%b}" % key_id.hex.encode()], [rate])
        except FeedsAway:
            wait_us = None
        if isinstance(wait_us, int):
            counters.limits["redis"] += 1
            return wait_us / 1e6
        counters.limits["process"] += 1  # away, full, or a replica by now
        return self._take_from_process(key_id, rate)

    def _take_from_process(self, key_id: UUID, rate: int) -> float:
        """Take a token as `rate_limit.lua` does, from this process's own bucket."""
        now = time.monotonic()
        full_at = max(self._full_at.get(key_id, now), now) + 1 / rate
        wait_s = full_at - now - max(BUCKET_S, 1 / rate)
        if wait_s > 1e-6:
            return wait_s
        self._full_at.store(key_id, full_at)
        return 0.0
