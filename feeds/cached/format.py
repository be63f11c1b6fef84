"""Is what Redis holds of a feed provably true?

Keys, all of an organisation under one hash tag: a hash of `gen`, a sealed count per feed number that
was read (under `~` and the number a floor, for one that is being read), and per such feed a list of its
newest entries, oldest first. An entry is `ordinal crc json`, the JSON without its `feeds.movement.HEAD`. The CRC is
seeded with the key (so with organisation, epoch and server) and the rendering's version: an entry that is
damaged, astray or of another version does not prove itself.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b, sha1
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

from feeds.movement import HEAD
from feeds.page import Place, cut

WINDOW = 200
"""How many of its newest entries a cached feed holds."""
LIFETIME_S = 600
"""How long a cached organisation lives, counted from its first read: what a lost append costs at most."""
EPOCH_EVERY_S = 0.15
"""For how long a process that reads feeds rests, once it has learnt the epoch, before it asks again."""
EPOCH_WITHIN_S = 0.3
"""How long it waits to be told; then it asks again."""
HEAD_BYTES = HEAD.encode()
RENDERING = 2
"""The version of an entry: raise it when the same movement would be shown, or kept, as other bytes. It is in no key: a
worker of the version before would append where nobody of this one reads."""


class Server(NamedTuple):
    """A master that holds feeds. A restart changes the first, a failover the second."""

    run_id: str
    replication_id: str


class FeedsAway(Exception):  # noqa: N818 -- a state, not a mistake
    """The feeds' Redis cannot be used now: no answer in time, no master, or another server than before."""


class MissReason(StrEnum):
    """Why the cache could not answer."""

    AWAY = "away"  # no server, a replica, or one that is too slow
    COLD = "cold"  # nobody has read this feed lately
    BEYOND = "beyond"  # older than the window; the count is true
    SHORT = "short"  # the list was lost, whole or in part; the count is true
    TORN = "torn"  # list and count do not belong together
    CORRUPT = "corrupt"  # something does not prove itself
    OLDER = "older"  # this process has served a newer page


class Hit(NamedTuple):
    """A proven slice: the feed's count as `total`, and the JSON of the entries, newest first."""

    total: int
    entries: list[bytes]


class Unchanged:
    """The feed's count is the one that the reader knows, so his page is still true."""


UNCHANGED = Unchanged()


class Miss(NamedTuple):
    """No slice. `total` is the feed's cached count where that is proven (`beyond`, `short`)."""

    reason: MissReason
    total: int | None = None


def read_server(info: bytes) -> Server | None:
    """Return which server answered INFO (sections server and replication), or None unless it is a master."""
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    if facts.get("role") != "master":
        return None
    return Server(facts["run_id"], facts["master_replid"])


def stamp(epoch: UUID, server: Server) -> str:
    """Return what every key of this ledger on this server carries."""
    return blake2b(f"{epoch} {server.run_id} {server.replication_id}".encode(), digest_size=12).hexdigest()


def hash_key(stamped: str, org_id: str) -> bytes:
    """Return the key of an organisation's hash."""
    return f"feeds:{stamped}:{{{org_id}}}".encode()


def list_key(key: bytes, feed: int) -> bytes:
    """Return the key of a feed's list, given that of its hash."""
    return b"%s:%d" % (key, feed)


def seal_count(key: bytes, feed: int, count: int) -> bytes:
    """Return a count as the hash keeps it: bound to organisation and feed. `seal.lua` does the same."""
    proof = sha1(b"%s:%d:%d" % (key, feed, count), usedforsecurity=False).hexdigest()
    return b"%d %s" % (count, proof[:8].encode())


def read_count(key: bytes, feed: int, sealed: object) -> int | Miss:
    """Return a feed's count, or why there is none."""
    if sealed is None:
        return Miss(MissReason.COLD)
    if isinstance(sealed, bytes):
        digits = sealed.partition(b" ")[0]
        if digits.isdigit() and len(digits) < 19 and seal_count(key, feed, int(digits)) == sealed:
            return int(digits)
    return Miss(MissReason.CORRUPT)


def seed(key: bytes) -> int:
    """Return where the CRCs of an organisation's entries start."""
    return crc32(key, RENDERING)


def seal_json(start: int, json: bytes) -> bytes:
    """Return `crc json`: an entry without its ordinal, the same in every feed of the movement.

    What all JSON begins with is left out: a seventh of an entry's bytes.
    """
    return b"%08x %s" % (crc32(json, start), json[len(HEAD_BYTES) :])


def prove(  # noqa: PLR0913 -- what Redis gave, and what was asked
    key: bytes, feed: int, sealed: object, entries: object, place: Place, *, window: int = WINDOW
) -> Hit | Miss:
    """Prove what Redis gave for a place: the feed's sealed count, and entries, oldest first."""
    total = read_count(key, feed, sealed)
    if isinstance(total, Miss):
        return total
    span = cut(place, total)
    wanted = span.newest - span.below
    if not isinstance(entries, list):
        return Miss(MissReason.CORRUPT)
    if len(entries) > wanted:
        return Miss(MissReason.TORN)
    if len(entries) < wanted:
        return Miss(MissReason.BEYOND if total - span.below > window else MissReason.SHORT, total)
    return prove_entries(key, total, entries, span.newest)


def prove_entries(key: bytes, total: int, entries: Sequence[bytes], newest: int) -> Hit | Miss:
    """Prove entries, oldest first, of which the last should have the ordinal `newest`."""
    if len(entries) > newest:
        return Miss(MissReason.TORN)
    start = seed(key)
    found = []
    for ordinal, entry in zip(range(newest, 0, -1), reversed(entries), strict=False):
        head, _, tail = entry.rpartition(b" ")
        json = HEAD_BYTES + tail
        if head != b"%d %08x" % (ordinal, crc32(json, start)):
            return Miss(MissReason.TORN if is_whole(head, json, start) else MissReason.CORRUPT)
        found.append(json)
    return Hit(total, found)


def is_whole(head: bytes, json: bytes, start: int) -> bool:
    """Tell an undamaged entry out of its place from a damaged one."""
    ordinal, _, crc = head.partition(b" ")
    return ordinal.isdigit() and crc == b"%08x" % crc32(json, start)
