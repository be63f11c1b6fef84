"""Do the clocks of this machine, of Redis and of Postgres agree?"""

import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from worker.doctor.finding import Finding, fine, join_words, mend

BOUND_S = 1.0
"""By how much two clocks may differ."""
TRIES = 3


class Reading(NamedTuple):
    """How far a clock is ahead of this machine's, and by how much this may be wrong: half of the round trip."""

    whose: str
    ahead_s: float
    error_s: float


HERE = Reading("this machine", 0.0, 0.0)


def read_clock(whose: str, ask: Callable[[], float]) -> Reading:
    """Compare a clock with this machine's. The fastest of a few tries counts.

    Args:
        whose: What the clock belongs to.
        ask: Returns its time, in seconds since 1970.
    """
    return min((read_once(whose, ask) for _ in range(TRIES)), key=lambda reading: reading.error_s)


def read_once(whose: str, ask: Callable[[], float]) -> Reading:
    """Compare a clock once. While it is asked, this machine's clock may be set: so the time taken is monotonic."""
    began_at, began = time.time(), time.monotonic()
    told = ask()
    half = (time.monotonic() - began) / 2
    return Reading(whose, told - (began_at + half), half)


def judge_clocks(readings: Sequence[Reading]) -> list[Finding]:
    """Judge each pair of clocks. A difference counts if it is beyond the bound whatever the error."""
    found = [judge_pair(one, other) for one, other in combinations(readings, 2)]
    apart = [finding for finding in found if finding]
    if apart or len(readings) < 2:
        return apart
    widest = max(abs(one.ahead_s - other.ahead_s) for one, other in combinations(readings, 2))
    return [fine("clocks", f"The clocks of {list_clocks(readings)} agree within {max(widest, 0.001):.3f} s.")]


def judge_pair(one: Reading, other: Reading) -> Finding | None:
    """Return what is wrong with two clocks, None if they agree."""
    fast, slow = (one, other) if one.ahead_s > other.ahead_s else (other, one)
    difference, error = fast.ahead_s - slow.ahead_s, fast.error_s + slow.error_s
    if difference - error <= BOUND_S:
        return None
    return mend(
        "clocks",
        f"The clock of {fast.whose} is {difference:,.1f} s (± {error:.1f}) ahead of that of {slow.whose}.",
        "Ages in `health` and the metrics are wrong by that much. Postgres's clock judges the times that producers"
        " send, so a usage may miss its grant, or count as `occurred_in_future`.",
        "Run a time service, such as chrony, on both machines.",
    )


def list_clocks(readings: Sequence[Reading]) -> str:
    """Return the names of the clocks as text."""
    return join_words(list(dict.fromkeys(reading.whose for reading in readings)))
