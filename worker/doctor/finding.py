"""What does the doctor report?"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    MEND = "mend"


class Finding(NamedTuple):
    """One thing that was looked at.

    `name` stays the same from version to version, for programs that read it. `what` is the fact, `why` says why it
    matters, `to_do` says what to do about it: whole sentences, the last two empty if all is well.
    """

    level: Level
    name: str
    what: str
    why: str = ""
    to_do: str = ""


class Section(NamedTuple):
    """What was found at one place: a server, or this machine."""

    about: str
    findings: list[Finding]


def fine(name: str, what: str) -> Finding:
    """Return a finding that needs no attention."""
    return Finding(Level.OK, name, what)


def note(name: str, what: str, why: str, to_do: str) -> Finding:
    """Return a remark: everything works, but it deserves attention. See `Finding` for the arguments."""
    return Finding(Level.NOTE, name, what, why, to_do)


def mend(name: str, what: str, why: str, to_do: str) -> Finding:
    """Return something that must be mended. See `Finding` for the arguments."""
    return Finding(Level.MEND, name, what, why, to_do)


def join_words(words: Sequence[str]) -> str:
    """Return words as text: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def list_names(names: Sequence[str], at_most: int = 6) -> str:
    """Return names as text. After `at_most` of them it says only how many more there are."""
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most:,} more"
