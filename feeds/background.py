"""How does a background task of the endpoint survive an error that it does not expect?"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

log = logging.getLogger(__name__)


async def repeat(name: str, step: Callable[[], Awaitable[object]], pause_s: float) -> NoReturn:
    """Run `step` again and again, `pause_s` seconds apart, until the task is cancelled.

    An error never ends the loop: a task that ended silently would leave its work undone until the next restart.
    The first error of a series is logged with its traceback.
    """
    failed = False
    while True:
        await asyncio.sleep(pause_s)
        try:
            await step()
        except Exception:  # the edge of the task: no caller would see the error
            if not failed:
                log.exception("%s failed; it is repeated every %s s", name, pause_s)
            failed = True
        else:
            failed = False
