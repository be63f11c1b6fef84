"""How are the arguments of commands parsed and checked?"""

import re
from datetime import datetime
from typing import Any

import click

from feeds.identifiers import ORG_ID_PATTERN, USER_ID_PATTERN
from feeds.times import parse_time


class Instant(click.ParamType[datetime]):
    """An RFC 3339 time with an offset."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the instant in UTC."""
        try:
            return parse_time(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class TextMatching(click.ParamType[str]):
    """A text that matches a pattern."""

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        self.pattern = pattern

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        if not re.fullmatch(self.pattern, value):
            self.fail(f"{value!r} does not match {self.pattern}", param, ctx)
        return str(value)


INSTANT = Instant()
ORG = TextMatching("org", ORG_ID_PATTERN)
HASH = TextMatching("hash", "[0-9a-fA-F]{64}")
USER = TextMatching("user", USER_ID_PATTERN)
