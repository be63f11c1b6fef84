"""May a key that has a rate ask now?

A token bucket in the feeds' Redis, shared by all processes: `rate` turns a second, as many in store. While Redis is
away each process keeps buckets of its own.
"""

import time
from collections import OrderedDict
from pathlib import Path
from uuid import UUID

from feeds import counters as tally
from feeds.cached.format import FeedsAway
from feeds.cached.multiplexer import Multiplexer
from feeds.cached.scripts import load_script
from feeds.endpoint.errors import RateLimited

LIMIT = load_script(Path(__file__).with_suffix(".lua"))
STORE_S = 1.0
"""How many seconds' turns a bucket holds."""
KEPT = 10_000
"""Of how many keys a process remembers a refusal, or keeps a bucket. The eldest goes first."""


class RateLimiter:
    """The turns of keys, as one process takes them."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self._refused_until = OrderedDict[UUID, float]()
        self._full_at = OrderedDict[UUID, float]()

    def require_turn(self, key_id: UUID) -> None:
        """Refuse a key that was refused, until there is a turn again: flooding costs no round trip, and no page."""
        now = time.monotonic()
        until = self._refused_until.get(key_id, 0.0)
        if now < until:
            tally.limits["kept"] += 1
            raise RateLimited(until - now)

    async def take(self, key_id: UUID, rate: int) -> None:
        """Take one turn, in one round trip. Raises `RateLimited`."""
        self.require_turn(key_id)
        wait_s = await self._ask(key_id, rate)
        if wait_s > 0:
            keep(self._refused_until, key_id, time.monotonic() + wait_s)
            raise RateLimited(wait_s)

    async def _ask(self, key_id: UUID, rate: int) -> float:
        """Return in how many seconds there is a turn: 0 if it was taken."""
        try:
            wait_us = await self._multiplexer.run(LIMIT, [b"limits:{%b}" % key_id.hex.encode()], [rate])
        except FeedsAway:
            wait_us = None
        if isinstance(wait_us, int):
            tally.limits["redis"] += 1
            return wait_us / 1e6
        tally.limits["process"] += 1  # away, or it refuses to write: it is full, or a replica by now
        return self._take_here(key_id, rate)

    def _take_here(self, key_id: UUID, rate: int) -> float:
        """Do what `limit.lua` does, for this process alone."""
        now = time.monotonic()
        full_at = max(self._full_at.get(key_id, now), now) + 1 / rate
        wait_s = full_at - now - max(STORE_S, 1 / rate)
        if wait_s > 1e-6:
            return wait_s
        keep(self._full_at, key_id, full_at)
        return 0.0


def keep(memory: OrderedDict[UUID, float], key_id: UUID, instant: float) -> None:
    """Keep an instant, as the youngest; the eldest makes room."""
    memory[key_id] = instant
    memory.move_to_end(key_id)
    if len(memory) > KEPT:
        memory.popitem(last=False)
