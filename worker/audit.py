"""Is the ledger what the contract says, at one moment?"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row
from redis import Redis

from feeds.queries import load_queries
from worker.streams import stream_of

SQL = load_queries(__file__)

RULES = (
    "find_misplaced",
    "find_misplaced_usage",
    "find_torn_usages",
    "find_wrong_draws",
    "find_wrong_grants",
    "find_wrong_totals",
    "find_broken_chains",
    "find_wrong_last_hashes",
    "find_wrong_offsets",
)
EVERY_ORGANISATION = (0, 2**63 - 1)
LARGEST_ID = b"18446744073709551615-18446744073709551615"


class Finding(NamedTuple):
    """One thing that is not as it must be. `place` says where: a position, a grant, a feed, a stream."""

    org_id: str | None
    rule: str
    place: str
    expected: str
    found: str


class Line(NamedTuple):
    """A line that one can note, and its hash (64 hexadecimal digits): it stands for all up to it."""

    position: int
    hash: str


class Audit(NamedTuple):
    """What was checked, all at one moment, and what was found. `newest` is the one organisation's last line."""

    organisations: int
    movements: int
    grants: int
    findings: list[Finding]
    newest: Line | None = None


class UnknownOrganisation(LookupError):  # noqa: N818 -- what is so, in our words
    """No event, key or member ever named it."""


def audit_ledger(connection: Connection[Any], org_id: str | None = None, noted: Line | None = None) -> Audit:
    """Recompute every invariant of one organisation, or of all, in one snapshot: exact under load.

    A line of that one organisation, noted earlier, must still be there: then nothing up to it was changed.
    Raises UnknownOrganisation. The connection is in no transaction.
    """
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(SQL["begin_snapshot"])
        first_org, last_org = EVERY_ORGANISATION
        if org_id is not None:
            row = cursor.execute(SQL["number_organisation"], {"org_id": org_id}).fetchone()
            if row is None:
                raise UnknownOrganisation(org_id)
            first_org = last_org = row[0]
        organisations = {"first_org": first_org, "last_org": last_org}
        [(org_count, movements, grants)] = cursor.execute(SQL["count_checked"], organisations).fetchall()
        found = [row for rule in RULES for row in cursor.execute(SQL[rule], organisations).fetchall()]
        newest = None
        if org_id is not None:
            found += find_changed(cursor, first_org, noted)
            newest = next((Line(*row) for row in cursor.execute(SQL["read_newest_line"], {"org_no": first_org})), None)
        org_nos = list({row[0] for row in found})
        names: dict[int | None, str] = dict(cursor.execute(SQL["name_organisations"], {"org_nos": org_nos}).fetchall())
    findings = [Finding(names.get(org_no), *facts) for org_no, *facts in found]
    return Audit(org_count, movements, grants, findings, newest)


def find_changed(cursor: Cursor[Any], org_no: int, noted: Line | None) -> Iterator[tuple[Any, ...]]:
    """Yield a noted line that is not what it was: the chain, checked elsewhere, answers for those before it."""
    if noted is None:
        return
    row = cursor.execute(SQL["read_hash"], {"org_no": org_no, "position": noted.position}).fetchone()
    found = row[0] if row else "no such line"
    if found != noted.hash:
        yield org_no, "noted_hash", f"position {noted.position}", noted.hash, found


def audit_streams(redis: Redis, event_shards: int) -> list[Finding]:
    """Return the shards whose key is no stream or can take no more entries, and the streams that nobody reads."""
    keys = [stream_of(shard) for shard in range(event_shards)]
    pipeline = redis.pipeline(transaction=False)
    for key in keys:
        pipeline.type(key)
    kinds = [kind.decode() for kind in pipeline.execute()]
    findings = [
        Finding(None, "stream_is_a_stream", key, "a stream", f"a {kind}")
        for key, kind in zip(keys, kinds, strict=True)
        if kind not in {"stream", "none"}
    ]
    for key, kind in zip(keys, kinds, strict=True):
        if kind == "stream" and has_no_room(redis, key):
            findings.append(Finding(None, "stream_has_room", key, "an id below the largest", LARGEST_ID.decode()))
    return [*findings, *find_stray_streams(redis, set(keys))]


def has_no_room(redis: Redis, key: str) -> bool:
    """Tell whether the largest id of all was given out: Redis refuses every further entry."""
    return bool(redis.xinfo_stream(key)["last-generated-id"] == LARGEST_ID)


def find_stray_streams(redis: Redis, keys: set[str]) -> Iterator[Finding]:
    """Yield streams of shards that the ledger does not have: some producer has another EVENT_SHARDS."""
    for key in redis.scan_iter(match="events:{*}", count=1000, _type="stream"):
        name = key.decode("utf-8", "backslashreplace")
        if name not in keys and redis.xlen(key):
            yield Finding(None, "stream_has_a_shard", name, "no entries", f"{redis.xlen(key)} entries")
