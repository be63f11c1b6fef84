"""What does Redis hold of a feed, and how does a reader check that it is valid?

All keys of an organisation share one hash tag. Its hash holds `gen`, a random id, and the sealed count of each feed
that was read. While a feed is being read from Postgres, the hash may hold a floor for it, under `~` and the feed's
number: the lowest count that may be put there. Each feed that was read has a list of its newest items, oldest first. A
list element is `ordinal crc json`; the JSON lacks `feeds.movement.ITEM_PREFIX`. The CRC starts from the key (so from
organisation, epoch and server) and the version of the format: an element that is damaged, out of place or of another
version is not valid.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b, sha1
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

from feeds.movement import ITEM_PREFIX
from feeds.page import Place, cut

WINDOW = 200
"""How many of its newest items a cached feed holds."""
BALANCE = 1_000_000
"""The number of a feed that holds no movements. Its one item is the organisation's balance, its count is the revision
plus 1. So the rules of all feeds hold when a worker makes a balance outdated, and when a reader puts one."""
LIFETIME_S = 600
"""How long an organisation's feeds stay cached after their first read: the longest effect of a lost append."""
ITEM_PREFIX_BYTES = ITEM_PREFIX.encode()
FORMAT_VERSION = 2
"""Raise it when the bytes of an item or of its list element change. It is part of the CRC, not of the keys: with other
keys, a worker of the previous version would append to keys that no reader of this version reads."""


class Server(NamedTuple):
    """A Redis master that holds feeds. A restart changes the first id, a failover the second."""

    run_id: str
    replication_id: str


class FeedsAway(Exception):  # noqa: N818 -- a state, not a mistake
    """The feeds' Redis cannot be used now: no reply in time, not a master, or another server than before."""


class MissReason(StrEnum):
    """Why the cache has no answer."""

    AWAY = "away"  # no server, a replica, or a server that is too slow
    COLD = "cold"  # this feed was not read lately
    BEYOND = "beyond"  # older than the window; the count is valid
    SHORT = "short"  # the list was lost in whole or in part; the count is valid
    TORN = "torn"  # list and count do not belong together
    CORRUPT = "corrupt"  # a count or an item is not valid
    OLDER = "older"  # this process has served a newer page


class Hit(NamedTuple):
    """A valid slice: the feed's count as `total`, and its items, newest first."""

    total: int
    items: list[bytes]


class Unchanged:
    """The feed's count is the one that the reader knows, so its page is still current."""


UNCHANGED = Unchanged()


class Miss(NamedTuple):
    """No slice. `total` is the feed's cached count if it is valid (`beyond`, `short`)."""

    reason: MissReason
    total: int | None = None


def read_server(info: bytes) -> Server | None:
    """Return which server sent this INFO reply (sections server and replication); None unless it is a master.

    Raises FeedsAway for a node of a Redis Cluster: it replies MOVED about keys that are another node's.
    """
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    if "cluster" in {facts.get("redis_mode"), facts.get("server_mode")}:  # the second is Valkey's name
        raise FeedsAway("a node of a Redis Cluster, which is not supported")
    if facts.get("role") != "master":
        return None
    return Server(facts["run_id"], facts["master_replid"])


def make_stamp(epoch: UUID, server: Server) -> str:
    """Return the digest of epoch and server that every cache key carries."""
    return blake2b(f"{epoch} {server.run_id} {server.replication_id}".encode(), digest_size=12).hexdigest()


def hash_key(stamp: str, org_id: str) -> bytes:
    """Return the key of an organisation's hash."""
    return f"feeds:{stamp}:{{{org_id}}}".encode()


def list_key(key: bytes, feed: int) -> bytes:
    """Return the key of a feed's list, given the key of its hash."""
    return b"%s:%d" % (key, feed)


def seal_count(key: bytes, feed: int, count: int) -> bytes:
    """Return a count as the hash holds it, with a checksum over key, feed and count. `seal.lua` does the same."""
    checksum = sha1(b"%s:%d:%d" % (key, feed, count), usedforsecurity=False).hexdigest()
    return b"%d %s" % (count, checksum[:8].encode())


def read_count(key: bytes, feed: int, sealed: object) -> int | Miss:
    """Return a feed's count if its seal is valid, or why there is none."""
    if sealed is None:
        return Miss(MissReason.COLD)
    if isinstance(sealed, bytes):
        digits = sealed.partition(b" ")[0]
        if digits.isdigit() and len(digits) < 19 and seal_count(key, feed, int(digits)) == sealed:
            return int(digits)
    return Miss(MissReason.CORRUPT)


def seed(key: bytes) -> int:
    """Return the value from which the CRCs of an organisation's items start."""
    return crc32(key, FORMAT_VERSION)


def seal_item(start: int, item: bytes) -> bytes:
    """Return `crc json`: a list element without its ordinal, so the same in every feed of the movement.

    The beginning that all items share is left out: a seventh of the bytes.
    """
    return b"%08x %s" % (crc32(item, start), item[len(ITEM_PREFIX_BYTES) :])


def validate(  # noqa: PLR0913 -- Redis's reply, and the place that was read
    key: bytes, feed: int, sealed: object, elements: object, place: Place, *, window: int = WINDOW
) -> Hit | Miss:
    """Return the items at a place if all that Redis replied is valid: the sealed count, and elements, oldest first."""
    total = read_count(key, feed, sealed)
    if isinstance(total, Miss):
        return total
    span = cut(place, total)
    expected = span.newest - span.below
    if not isinstance(elements, list):
        return Miss(MissReason.CORRUPT)
    if len(elements) > expected:
        return Miss(MissReason.TORN)
    if len(elements) < expected:
        return Miss(MissReason.BEYOND if total - span.below > window else MissReason.SHORT, total)
    return validate_items(key, total, elements, span.newest)


def validate_items(key: bytes, total: int, elements: Sequence[bytes], newest: int) -> Hit | Miss:
    """Return the items of list elements, given oldest first, if the last has the ordinal `newest` and all are valid."""
    if len(elements) > newest:
        return Miss(MissReason.TORN)
    start = seed(key)
    items = []
    for ordinal, element in zip(range(newest, 0, -1), reversed(elements), strict=False):
        head, _, tail = element.rpartition(b" ")
        item = ITEM_PREFIX_BYTES + tail
        if head != b"%d %08x" % (ordinal, crc32(item, start)):
            return Miss(MissReason.TORN if is_undamaged(head, item, start) else MissReason.CORRUPT)
        items.append(item)
    return Hit(total, items)


def is_undamaged(head: bytes, item: bytes, start: int) -> bool:
    """Tell an undamaged element that is out of place from a damaged one."""
    ordinal, _, crc = head.partition(b" ")
    return ordinal.isdigit() and crc == b"%08x" % crc32(item, start)
