"""When is beat's next tick due, whatever the machine's clock does?"""

from time import monotonic
from typing import Any

from celery.schedules import schedstate, schedule


class Steady(schedule):
    """A schedule by the monotonic clock: Celery's own sends nothing for an hour if the clock is set back by an hour.

    Tools that store the schedule, such as redbeat, take it for an ordinary interval.
    """

    def __init__(self, every_s: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(every_s, *args, **kwargs)
        self.every_s = every_s
        self.due_at = monotonic()

    def is_due(self, last_run_at: Any) -> Any:  # noqa: ARG002 -- Celery's own signature
        """Return whether a tick is due, and in how many seconds to ask again."""
        now = monotonic()
        if now < self.due_at:
            return schedstate(is_due=False, next=self.due_at - now)
        self.due_at = now + self.every_s
        return schedstate(is_due=True, next=self.every_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.every_s,)
