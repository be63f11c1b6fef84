"""What does an audit report?"""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that breaks a rule. `place` says where: a position, a grant, a feed, a stream."""

    org_id: str | None
    rule: str
    place: str
    expected: str
    found: str
