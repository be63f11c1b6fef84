"""Which texts are a time?"""

import re
from datetime import UTC, datetime

HOUR_AND_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
RFC_3339 = re.compile(
    rf"\d{{4}}-\d\d-\d\d[Tt]{HOUR_AND_MINUTE}:[0-5]\d(\.\d{{1,30}})?([Zz]|[+-]{HOUR_AND_MINUTE})", re.ASCII
)
"""Hour 24, second 60 and minutes above 59 are refused here: what `datetime` takes differs between Python versions."""


def parse_time(value: object) -> datetime:
    """Return an RFC 3339 string, or a datetime with an offset, as a datetime in UTC. Raises ValueError."""
    if isinstance(value, str):
        if not RFC_3339.fullmatch(value):
            raise ValueError(
                "must be an RFC 3339 time with an offset, like 2026-06-01T10:00:00Z"
                " (hours end at 23, minutes and seconds at 59)"
            )
        value = datetime.fromisoformat(value.upper())
    elif not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError("must be an RFC 3339 string with an offset, like 2026-06-01T10:00:00Z")
    # The years 1 and 9999 may have no equivalent in UTC, so they are refused before the conversion.
    if not 1999 <= value.year <= 9000 or not 2000 <= (in_utc := value.astimezone(UTC)).year <= 8999:
        raise ValueError("must be in the years 2000 to 8999, in UTC")
    return in_utc
