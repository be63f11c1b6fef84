"""What is known of an organisation while its row is locked?"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heappush
from itertools import count

from feeds.movement import Movement
from worker.ledger.grants import ACTIVE, ALWAYS, FIRST_DRAWN, NEVER, PENDING, DrawPlace, Grant, draw_order


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all events of a batch. `now` is Postgres's clock; `usage_numbers` is the ledger's."""

    now: datetime
    expiry_grace: timedelta
    usage_numbers: Mapping[str, int]


Change = tuple[datetime, bool, int, Grant]
"""A start or an end of a grant: its time, whether it is an end, the grant's number, the grant.

At the same time, starts come before ends, then older grants before newer ones.
"""


@dataclass(slots=True)
class Organisation:
    """The state of an organisation whose row is locked, and what this batch adds to it.

    `counts` and `totals` hold the number of movements of each feed, and the sum of their credits, by the feed's number.
    `last_hash` and `last_created_at` are the newest movement's; before the first, the hash is that of the `org_id`.
    `pending` is what the grants that start later will give. `revision` counts the batches that changed a movement or a
    grant. `grants` holds, by ref, the grants that are known: those
    whose start or end has come, those that the batch names, and as many of the others, in draw order, as the batch has
    needed. `usages` maps the ref of each usage that the batch names and that is already posted to its kind and credits.
    `movements` and `changed_grants` are still to be written. `changes` is a heap of the starts and ends of known
    grants, as `Change` says. `draw_list` holds the known active grants in draw order; it is None until the first draw.

    `read_more` reads active grants that are not known yet, the next ones in draw order, and tells `learn_drawable` of
    them. It is None when all are known. `read_to` is the place in the draw order up to which all are known.
    """

    org_id: str
    counts: list[int]
    totals: list[int]
    last_hash: bytes
    grant_count: int = 0
    pending: int = 0
    revision: int = 0
    last_created_at: datetime = ALWAYS
    grants: dict[str, Grant] = field(default_factory=dict)
    usages: dict[str, tuple[str, int]] = field(default_factory=dict)
    movements: list[Movement] = field(default_factory=list)
    changed_grants: dict[int, Grant] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    draw_list: list[Grant] | None = None
    read_more: Callable[[], None] | None = None
    read_to: DrawPlace = FIRST_DRAWN


def learn(organisation: Organisation, grant: Grant, terms: Terms) -> None:
    """Add a grant to those that are known, with its start and its end. One that is known already stays as it is."""
    if grant.grant_ref in organisation.grants:
        return
    organisation.grants[grant.grant_ref] = grant
    if grant.state is PENDING:
        heappush(organisation.changes, (grant.effective_at or ALWAYS, False, grant.grant_no, grant))
    if grant.open and grant.expires_at and grant.expires_at < NEVER - terms.expiry_grace:
        heappush(organisation.changes, (grant.expires_at + terms.expiry_grace, True, grant.grant_no, grant))


def learn_drawable(organisation: Organisation, grants: Iterable[Grant], terms: Terms, *, all_known: bool) -> None:
    """Add the active grants that come next in draw order. `all_known` says that none comes after them."""
    for grant in grants:
        organisation.read_to = draw_order(grant)
        if organisation.draw_list is not None and grant.grant_ref not in organisation.grants:
            organisation.draw_list.append(grant)
        learn(organisation, grant, terms)
    if organisation.draw_list is not None:
        organisation.draw_list.sort(key=draw_order)
    if all_known:
        organisation.read_more = None


def walk_drawable(organisation: Organisation) -> Iterator[Grant]:
    """Yield the active grants in draw order. Those that are not known yet are read when their turn comes."""
    if organisation.draw_list is None:
        active = [grant for grant in organisation.grants.values() if grant.state is ACTIVE]
        organisation.draw_list = sorted(active, key=draw_order)
    known = organisation.draw_list
    for place in count():
        while organisation.read_more and (place == len(known) or draw_order(known[place]) > organisation.read_to):
            organisation.read_more()
        if place == len(known):
            return
        yield known[place]


def drop_closed(organisation: Organisation) -> None:
    """Take the grants that are closed off the list of those to be drawn."""
    if organisation.draw_list is not None:
        organisation.draw_list = [grant for grant in organisation.draw_list if grant.open]


def forget(organisation: Organisation) -> Organisation:
    """Return the organisation without the grants and usages that are known of it. All changes must be written."""
    return Organisation(
        organisation.org_id,
        organisation.counts,
        organisation.totals,
        organisation.last_hash,
        organisation.grant_count,
        organisation.pending,
        organisation.revision,
        organisation.last_created_at,
    )
