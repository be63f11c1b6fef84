"""What is said to the feeds' Redis?"""

from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

Command = tuple[str | bytes | int, ...]
"""A command's name and arguments."""

FOLDER = Path(__file__).parent


class Script(NamedTuple):
    """A Lua script, and the name under which a server that has run it knows it."""

    digest: str
    text: str


def load_script(*stems: str) -> Script:
    """Return the script made of the `.lua` files of these stems, in this order."""
    text = "\n".join((FOLDER / f"{stem}.lua").read_text() for stem in stems)
    return Script(sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


APPEND = load_script("seal", "append")
PUT = load_script("seal", "put")
RANGE = load_script("range")
LIMIT = load_script("limit")
