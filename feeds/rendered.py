"""Which rendered pages does a process keep, to send again as long as they are true?"""

from collections import OrderedDict
from typing import NamedTuple

from feeds.feed import Known
from feeds.listing import Ask

KEPT = 2048
"""How many: a page of 20 lines has 4 kB."""


class Page(NamedTuple):
    """A page as it is sent, and the moment of its feed that it shows."""

    known: Known
    etag: str
    body: bytes


class Rendered:
    """The pages most lately sent, by organisation and what was asked."""

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[str, Ask], Page] = OrderedDict()

    def find(self, org_id: str, ask: Ask) -> Page | None:
        """Return the page that was last sent, true or not."""
        return self._pages.get((org_id, ask))

    def keep(self, org_id: str, ask: Ask, page: Page) -> None:
        """Keep a page; the one kept longest makes room."""
        self._pages[org_id, ask] = page
        self._pages.move_to_end((org_id, ask))
        if len(self._pages) > KEPT:
            self._pages.popitem(last=False)
