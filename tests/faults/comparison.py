"""What came of a run? The ledger against the plain model, the dead letters, and every page against the ledger."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import psycopg

from feeds.movement import KIND_OF_LETTER, Kind, format_id, format_time
from feeds.page import feed_numbers
from tests.faults.doors import CeleryDoor, StreamDoor
from tests.faults.model import Line, replay, show_clock
from tests.faults.readers import USAGE_KINDS, Client, Endpoint, Page, Prober, Served, digest_of
from tests.faults.traffic import STREAM_ORGANISATIONS, Traffic

if TYPE_CHECKING:
    from tests.faults.stage import Stage

READ = """
SELECT kind::text, credits, usage_number, usage_ref, draws, created_at, movement_id
FROM movements JOIN organisations USING (org_no)
WHERE org_id = %s
ORDER BY position
"""


class Facts(NamedTuple):
    """The table's rows, and what is wrong, in words."""

    table: dict[str, object]
    wrong: list[str]


def reckon(
    made: "Stage",
    traffic: Traffic,
    stream_door: StreamDoor,
    celery_door: CeleryDoor,
    prober: Prober,
    served: Served,
    endpoint: Endpoint,
) -> Facts:
    """Compare everything, and count."""
    sent = expected_usages(traffic, celery_door, prober)
    wrong: list[str] = []
    lost = twice = different = wrong_pages = checked_feeds = 0
    pages = defaultdict(list)
    for page in served.pages:
        pages[page.org_id].append(page)
    client = Client(endpoint, served)
    with psycopg.connect(made.database_url) as connection:
        for org_id, wanted in sent.items():
            rows = read_lines(connection, org_id)
            lines = [as_line(row) for row in rows]
            missing, double = compare_usages(wanted, [line for _, line in lines])
            lost, twice = lost + len(missing), twice + len(double)
            wrong += [f"{org_id}: lost {ref}" for ref in missing[:5]] + [f"{org_id}: twice {ref}" for ref in double[:5]]
            if org_id in STREAM_ORGANISATIONS:
                problems, _ = replay(traffic.sent[org_id], lines)
                different += len(problems)
                wrong += [f"{org_id}: {problem}" for problem in problems]
            feeds = as_feeds(rows)
            bad = [page for page in pages[org_id] if not is_right(page, feeds)]
            wrong_pages += len(bad)
            wrong += [f"wrong page: {page}" for page in bad[:5]]
            problems, checked = compare_endpoint(client, org_id, feeds)
            if problems and len(now := read_lines(connection, org_id)) > len(rows):  # a grant has just come to its end
                problems, _ = compare_endpoint(client, org_id, as_feeds(now))
            checked_feeds += checked
            wrong += problems
        [(dead,)] = connection.execute(
            "SELECT jsonb_object_agg(code, n) FROM (SELECT code, count(*) AS n FROM dead_letters GROUP BY 1) AS d"
        ).fetchall()
    dead_words, dead_wrong = compare_dead(traffic, dead or {}, stream_door)
    wrong += dead_wrong
    seconds = sorted(prober.seconds) or [0.0]
    table = {
        "events sent through the streams": f"{stream_door.answered:,} ({', '.join(f'{n:,} {sort}' for sort, n in traffic.counts.most_common())}), and {prober.sent:,} probes",
        "sent again as there was no answer": f"{stream_door.again:,}",
        "answered by Valkey but not in its append-only file when it was killed, sent again": f"{stream_door.forgotten:,}",
        "events sent through `events.post`": f"{sum(map(len, celery_door.sent)):,} in {len(celery_door.sent):,} messages",
        "kills (SIGKILL; Postgres: immediate stop)": ", ".join(f"{n} {sort}" for sort, n in made.kills.most_common()),
        "lost": lost,
        "posted twice": twice,
        "lines other than the model's": different,
        "dead letters": dead_words,
        "pages read under load": f"{len(served.pages):,}, {served.walks:,} walks by cursor",
        "wrong pages": wrong_pages + served.wrong_count - served.stale - served.back,
        "stale pages (older than the ledger 5 s before, and nothing killed since)": served.stale,
        "as old, while kills came closer than 5 s": served.late,
        "pages older than one served before": served.back,
        "feeds compared whole at the end": f"{checked_feeds}",
        "answers 500": served.errors,
        "slowest answer": f"{served.slowest_s:.2f} s",
        "added to visible": f"p50 {quantile(seconds, 0.5):.3f} s, p99 {quantile(seconds, 0.99):.2f} s, worst {seconds[-1]:.2f} s",
    }
    return Facts(table, wrong)


class Row(NamedTuple):
    """A movement as it is read here."""

    kind: str
    credits: int
    usage_number: int | None
    usage_ref: str
    draws: str | None
    created_at: datetime
    movement_id: UUID


def read_lines(connection: psycopg.Connection[Any], org_id: str) -> list[Row]:
    """Return an organisation's movements, the oldest first."""
    rows = (Row(*row) for row in connection.execute(READ, [org_id]))
    return [row._replace(kind=KIND_OF_LETTER[row.kind].value) for row in rows]


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def expected_usages(traffic: Traffic, celery_door: CeleryDoor, prober: Prober) -> dict[str, dict[str, int]]:
    """Return what each organisation must be charged for each ref: its first content."""
    wanted: dict[str, dict[str, int]] = defaultdict(dict)
    probes = [{"org_id": f"org_p{n % 4}", "usage_ref": f"p{n}", "credits": 1} for n in range(1, prober.sent + 1)]
    for event in chain(*traffic.sent.values(), *celery_door.sent, probes):
        if event.get("usage_ref") and event["credits"] and not event.get("far_ahead"):
            wanted[event["org_id"]].setdefault(event["usage_ref"], event["credits"])
    return wanted


def compare_usages(wanted: dict[str, int], lines: list[Line]) -> tuple[list[str], list[str]]:
    """Return the refs that the ledger lacks, wholly or in part, and those that it has in excess."""
    found: Counter[str] = Counter()
    for line in lines:
        if line.usage_kind:
            found[line.ref] -= line.credits
    missing = [ref for ref, credits_ in wanted.items() if found[ref] < credits_]
    return missing, [ref for ref, credits_ in found.items() if credits_ > wanted.get(ref, 0)]


def as_line(row: Row) -> tuple[str, Line]:
    """Return a movement as the model knows it, and its clock."""
    usage_kind = None if row.usage_number is None else USAGE_KINDS[row.usage_number]
    pairs = [draw.split(":") for draw in row.draws.split(",")] if row.draws else []
    draws = tuple((int(grant), int(drawn)) for grant, drawn in pairs)
    return show_clock(row.created_at), Line(row.kind, row.credits, usage_kind, row.usage_ref, draws)


def as_feeds(rows: list[Row]) -> dict[int, list[dict[str, Any]]]:
    """Return an organisation's feeds, oldest first, as JSON objects, written here once more from the contract."""
    feeds: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        item = {"object": "credit_entry", "id": format_id(row.movement_id), "kind": row.kind, "credits": row.credits}
        if row.usage_number is not None:
            item["usage_kind"] = USAGE_KINDS[row.usage_number]
        item |= {"usage_ref": row.usage_ref, "created_at": format_time(row.created_at)}
        for feed in feed_numbers(Kind(row.kind), row.usage_number):
            feeds[feed].append(item)
    return feeds


def is_right(page: Page, feeds: dict[int, list[dict[str, Any]]]) -> bool:
    """Tell whether a page is the slice of the ledger that it says it is."""
    of_feed = feeds.get(page.feed, [])
    if page.newest > len(of_feed) and page.lines:
        return False
    return digest_of(of_feed[page.newest - page.lines : page.newest][::-1]) == page.digest


def compare_endpoint(client: Client, org_id: str, feeds: dict[int, list[dict[str, Any]]]) -> tuple[list[str], int]:
    """Read every feed's newest, middle and oldest pages, all at rest: they are the ledger's."""
    problems, checked = [], 0
    for kind, usage_kind, feed in every_feed():
        of_feed = feeds.get(feed, [])[::-1]
        pages = max(1, -(-len(of_feed) // 100))
        for number in sorted({1, 2, 3, pages // 2 + 1, pages}):
            page = next(
                (
                    one
                    for _ in range(20)
                    if (one := client.get(org_id, kind=kind, usage_kind=usage_kind, limit=100, page=number))
                ),
                None,
            )
            if (
                page is None
                or page["pages"]["total_items"] != len(of_feed)
                or page["items"] != of_feed[(number - 1) * 100 : number * 100]
            ):
                problems.append(
                    f"at rest: {org_id} {kind} {usage_kind} page {number}: {json.dumps(page and page['pages'])}, ledger {len(of_feed)}"
                )
        checked += 1
    return problems, checked


def every_feed() -> Iterator[tuple[str | None, str | None, int]]:
    """Yield the filters of all feeds that can hold lines, with their numbers."""
    yield None, None, 0
    for number, kind in enumerate(Kind, 1):
        yield kind.value, None, number
    for number, usage_kind in enumerate(USAGE_KINDS):
        yield None, usage_kind, 6 + 3 * number
        yield "consume", usage_kind, 7 + 3 * number
        yield "overflow", usage_kind, 8 + 3 * number


def compare_dead(traffic: Traffic, found: dict[str, int], door: StreamDoor) -> tuple[str, list[str]]:
    """Compare the dead letters with what was sent: at least as many, and no more than was sent again."""
    wanted: Counter[str] = Counter()
    for events in traffic.sent.values():
        _, account = replay_refusals(events)
        wanted += account
    bad = found.get("undecodable", 0) + found.get("invalid_event", 0)
    pairs = {code: (number, found.get(code, 0)) for code, number in wanted.items()}
    pairs["garbage"] = traffic.counts["garbage"], bad
    more = door.again + door.forgotten
    problems = [
        f"dead letters {code}: {there} for {sent} sent"
        for code, (sent, there) in pairs.items()
        if not sent <= there <= sent + more
    ]
    unexpected = set(found) - {"undecodable", "invalid_event", *wanted}
    problems += [f"unexpected dead letters: {found[code]} {code}" for code in unexpected]
    return ", ".join(f"{there} {code} of {sent}" for code, (sent, there) in pairs.items()), problems


def replay_refusals(events: list[dict[str, Any]]) -> tuple[None, Counter[str]]:
    """Return how many events of each refused sort were sent: independent of any clock."""
    refused: Counter[str] = Counter()
    grants: dict[str, Any] = {}
    usages: dict[str, Any] = {}
    for event in events:
        if event["type"] == "grant":
            refused["conflict"] += grants.setdefault(event["grant_ref"], event) != event
        elif event["type"] == "revoke":
            refused["unknown_grant"] += event["grant_ref"] not in grants
        elif event["credits"] and event["usage_ref"] in usages:
            refused["conflict"] += usages[event["usage_ref"]] != (event["usage_kind"], event["credits"])
        elif event.get("far_ahead"):
            refused["occurred_in_future"] += 1
        elif event["credits"]:
            usages[event["usage_ref"]] = event["usage_kind"], event["credits"]
    return None, refused
