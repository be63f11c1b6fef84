"""Which Lua scripts run in the feeds' Redis?"""

from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

Command = tuple[str | bytes | int, ...]
"""A command's name and arguments."""

FOLDER = Path(__file__).parent


class Script(NamedTuple):
    """A Lua script, and its digest: the name by which a server that has run it knows it."""

    digest: str
    text: str


def load_script(*paths: Path) -> Script:
    """Return one script made of these files, in this order."""
    text = "\n".join(path.read_text() for path in paths)
    return Script(sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


def is_unknown_script(reply: object) -> bool:
    """Tell whether a server replied that it does not know a script."""
    return isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT")


APPEND = load_script(FOLDER / "seal.lua", FOLDER / "append.lua")
PUT = load_script(FOLDER / "seal.lua", FOLDER / "put.lua")
RANGE = load_script(FOLDER / "range.lua")
