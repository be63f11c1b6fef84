"""How do concurrent callers that want the same answer share one call?"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class SingleFlight:
    """Calls under way, one at a time for each key.

    Callers never get an answer that was requested before they arrived; latecomers share the next call.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._next: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what `call` returns, or raise what it raises.

        `call` runs once for all callers of this key that arrived before it began.
        """
        task: asyncio.Task[Answer] | None = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._run_after_previous(key, call))
            task.add_done_callback(retrieve_exception)
        return await asyncio.shield(task)

    async def _run_after_previous(self, key: Hashable, call: Callable[[], Awaitable[Answer]]) -> Answer:
        if previous := self._running.get(key):
            await asyncio.wait({previous})
        this = self._running[key] = self._next.pop(key)
        try:
            return await call()
        finally:
            if self._running.get(key) is this:
                del self._running[key]


def retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve a task's exception, so that asyncio does not log it as never retrieved when all callers have left."""
    if not task.cancelled():
        task.exception()
