"""How do all who want the same answer at once share one question?"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Flights:
    """Questions under way, one at a time for each key.

    An answer is never older than the wish for it: who comes while a question is under way shares the next.
    """

    def __init__(self) -> None:
        self._begun: dict[Hashable, asyncio.Task[Any]] = {}
        self._next: dict[Hashable, asyncio.Task[Any]] = {}

    async def share(self, key: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what `ask` returns, asked once for all who came before it began, or raise what it raises."""
        flight: asyncio.Task[Answer] | None = self._next.get(key)
        if flight is None:
            flight = self._next[key] = asyncio.create_task(self._fly(key, ask))
            flight.add_done_callback(look_at)
        return await asyncio.shield(flight)

    async def _fly(self, key: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        if before := self._begun.get(key):
            await asyncio.wait({before})
        this = self._begun[key] = self._next.pop(key)
        try:
            return await ask()
        finally:
            if self._begun.get(key) is this:
                del self._begun[key]


def look_at(flight: asyncio.Task[Any]) -> None:
    """Look at a flight's end, so that one which nobody awaits any more is not reported as a mistake."""
    if not flight.cancelled():
        flight.exception()
