"""Which forms must a command's arguments have?"""

import re
from datetime import datetime
from typing import Any

import click

from feeds.identifiers import ORG_ID_PATTERN, USER_ID_PATTERN
from worker.events import read_time


class Instant(click.ParamType[datetime]):
    """An RFC 3339 time with an offset."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the instant in UTC."""
        try:
            return read_time(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Matching(click.ParamType[str]):
    """A word of one form."""

    def __init__(self, name: str, form: str) -> None:
        self.name = name
        self.form = form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word."""
        if not re.fullmatch(self.form, value):
            self.fail(f"{value!r} is not of the form {self.form}", param, ctx)
        return str(value)


INSTANT = Instant()
ORG = Matching("org", ORG_ID_PATTERN)
HASH = Matching("hash", "[0-9a-fA-F]{64}")
USER = Matching("user", USER_ID_PATTERN)
