"""What stands for several rounds?"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """The median of several rounds, between the least and the greatest."""

    median: float
    least: float
    greatest: float

    def __format__(self, form: str) -> str:
        """Show the median, and the others behind it in brackets."""
        return f"{self.median:{form}} ({self.least:{form}} to {self.greatest:{form}})"


def summarise(values: Sequence[float]) -> Figure:
    """Return what stands for the values of several rounds."""
    return Figure(statistics.median(values), min(values), max(values))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
