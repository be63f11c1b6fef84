"""Which figures summarise several rounds?"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

Report = Callable[[str], None]
"""Prints a line of progress."""


class Figure(NamedTuple):
    """The median of several rounds, the least and the greatest."""

    median: float
    least: float
    greatest: float

    def __format__(self, form: str) -> str:
        """Return the median, and the others behind it in brackets."""
        return f"{self.median:{form}} ({self.least:{form}} to {self.greatest:{form}})"


def summarise(values: Sequence[float]) -> Figure:
    """Return the median, the least and the greatest of the values of several rounds."""
    return Figure(statistics.median(values), min(values), max(values))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
