"""What did a run do to the ledger and the pages?

The ledger is compared with the plain model, the dead letters with the sent events, and every served page with the ledger.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from feeds.movement import KIND_OF_LETTER, Kind, format_id, format_time
from feeds.page import feed_numbers
from tests.faults.model import Movement, format_clock, replay
from tests.faults.readers import USAGE_KINDS, Client, Endpoint, Observations, Prober, ServedPage, digest_of
from tests.faults.senders import CelerySender, StreamSender
from tests.faults.traffic import STREAM_ORGANISATIONS, Traffic

if TYPE_CHECKING:
    from tests.faults.deployment import Deployment

READ_MOVEMENTS = """
SELECT kind::text, credits, usage_number, usage_ref, draws, created_at, hash
FROM movements JOIN organisations USING (org_no)
WHERE org_id = %s
ORDER BY position
"""
COUNT_DEAD_LETTERS = """
SELECT jsonb_object_agg(code, n) FROM (SELECT code, count(*) AS n FROM dead_letters GROUP BY 1) AS d
"""


class Result(NamedTuple):
    """The rows of the table, and a description of everything that is wrong."""

    table: dict[str, object]
    wrong: list[str]


def compare_run(
    deployment: "Deployment",
    traffic: Traffic,
    stream_sender: StreamSender,
    celery_sender: CelerySender,
    prober: Prober,
    observations: Observations,
    endpoint: Endpoint,
) -> Result:
    """Compare ledger, dead letters and pages with what was sent, and count the differences."""
    wrong: list[str] = []
    lost = twice = different = wrong_pages = checked_feeds = 0
    pages = defaultdict(list)
    for page in observations.pages:
        pages[page.org_id].append(page)
    client = Client(endpoint, observations)
    with psycopg.connect(deployment.database_url) as connection:
        for org_id, wanted in expected_usages(traffic, celery_sender, prober).items():
            rows = read_movements(connection, org_id)
            ledger = [as_model_movement(row) for row in rows]
            missing, double = compare_usages(wanted, [movement for _, movement in ledger])
            lost, twice = lost + len(missing), twice + len(double)
            wrong += [f"{org_id}: lost {ref}" for ref in missing[:5]] + [f"{org_id}: twice {ref}" for ref in double[:5]]
            if org_id in STREAM_ORGANISATIONS:
                problems, _ = replay(traffic.sent[org_id], ledger)
                different += len(problems)
                wrong += [f"{org_id}: {problem}" for problem in problems]
            feeds = as_feeds(rows)
            bad = [page for page in pages[org_id] if not is_right(page, feeds)]
            wrong_pages += len(bad)
            wrong += [f"wrong page: {page}" for page in bad[:5]]
            problems, checked = compare_endpoint(client, org_id, feeds)
            if problems and len(now := read_movements(connection, org_id)) > len(rows):  # a grant has just ended
                problems, _ = compare_endpoint(client, org_id, as_feeds(now))
            checked_feeds += checked
            wrong += problems
        [(dead,)] = connection.execute(COUNT_DEAD_LETTERS).fetchall()
    dead_letters, dead_wrong = compare_dead_letters(traffic, dead or {}, stream_sender)
    wrong += dead_wrong
    seconds = sorted(prober.seconds) or [0.0]
    counts = ", ".join(f"{count:,} {category}" for category, count in traffic.counts.most_common())
    table = {
        "events through the streams": f"{stream_sender.answered:,} ({counts}), and {prober.sent:,} probes",
        "sent again because they were not answered": f"{stream_sender.sent_again:,}",
        "answered by Valkey, missing after it was killed, sent again": f"{stream_sender.lost_by_valkey:,}",
        "events through `events.post`": f"{sum(map(len, celery_sender.sent)):,} in {len(celery_sender.sent):,} messages",
        "kills (SIGKILL; Postgres: immediate stop), failovers, steps of beat's clock": ", ".join(
            f"{n} {part}" for part, n in deployment.kills.most_common()
        ),
        "lost": lost,
        "posted twice": twice,
        "movements that differ from the model's": different,
        "dead letters": dead_letters,
        "pages read under load": f"{len(observations.pages):,}, and {observations.walks:,} walks by cursor",
        "wrong pages": wrong_pages + observations.wrong_count - observations.stale - observations.went_back,
        "stale pages (older than the ledger 5 s earlier, and nothing killed since)": observations.stale,
        "as old, but something was killed within these 5 s": observations.stale_after_kill,
        "pages older than one served before": observations.went_back,
        "feeds compared at the end": f"{checked_feeds}",
        "answers 500": observations.errors,
        "slowest answer": f"{observations.slowest_s:.2f} s",
        "from adding an event to seeing it on a page": f"p50 {quantile(seconds, 0.5):.3f} s, p99 {quantile(seconds, 0.99):.2f} s, worst {seconds[-1]:.2f} s",
    }
    return Result(table, wrong)


class Row(NamedTuple):
    """A movement as it is read here."""

    kind: str
    credits: int
    usage_number: int | None
    usage_ref: str
    draws: str | None
    created_at: datetime
    hash: bytes


def read_movements(connection: psycopg.Connection[Any], org_id: str) -> list[Row]:
    """Return an organisation's movements, oldest first."""
    rows = (Row(*row) for row in connection.execute(READ_MOVEMENTS, [org_id]))
    return [row._replace(kind=KIND_OF_LETTER[row.kind].value) for row in rows]


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def expected_usages(traffic: Traffic, celery_sender: CelerySender, prober: Prober) -> dict[str, dict[str, int]]:
    """Return the credits that each ref of each organisation must cost: those of the first event with this ref."""
    wanted: dict[str, dict[str, int]] = defaultdict(dict)
    probes = [{"org_id": f"org_p{n % 4}", "usage_ref": f"p{n}", "credits": 1} for n in range(1, prober.sent + 1)]
    for event in chain(*traffic.sent.values(), *celery_sender.sent, probes):
        if event.get("usage_ref") and event["credits"] and not event.get("far_ahead"):
            wanted[event["org_id"]].setdefault(event["usage_ref"], event["credits"])
    return wanted


def compare_usages(wanted: dict[str, int], movements: list[Movement]) -> tuple[list[str], list[str]]:
    """Return the refs for which the ledger holds too few credits, and those for which it holds too many."""
    found: Counter[str] = Counter()
    for movement in movements:
        if movement.usage_kind:
            found[movement.ref] -= movement.credits
    missing = [ref for ref, credits_ in wanted.items() if found[ref] < credits_]
    return missing, [ref for ref, credits_ in found.items() if credits_ > wanted.get(ref, 0)]


def as_model_movement(row: Row) -> tuple[str, Movement]:
    """Return the clock of a movement, and the movement as the model knows it."""
    usage_kind = None if row.usage_number is None else USAGE_KINDS[row.usage_number]
    pairs = [draw.split(":") for draw in row.draws.split(",")] if row.draws else []
    draws = tuple((int(grant), int(drawn)) for grant, drawn in pairs)
    return format_clock(row.created_at), Movement(row.kind, row.credits, usage_kind, row.usage_ref, draws)


def as_feeds(rows: list[Row]) -> dict[int, list[dict[str, Any]]]:
    """Return an organisation's feeds, oldest first, as JSON objects. This does not use the code that renders items."""
    feeds: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        item = {
            "object": "credit_entry",
            "id": format_id(row.created_at, row.hash),
            "kind": row.kind,
            "credits": row.credits,
        }
        if row.usage_number is not None:
            item["usage_kind"] = USAGE_KINDS[row.usage_number]
        item |= {"usage_ref": row.usage_ref, "created_at": format_time(row.created_at)}
        for feed in feed_numbers(Kind(row.kind), row.usage_number):
            feeds[feed].append(item)
    return feeds


def is_right(page: ServedPage, feeds: dict[int, list[dict[str, Any]]]) -> bool:
    """Tell whether a page is the part of the ledger that it claims to be."""
    of_feed = feeds.get(page.feed, [])
    if page.newest > len(of_feed) and page.length:
        return False
    return digest_of(of_feed[page.newest - page.length : page.newest][::-1]) == page.digest


def compare_endpoint(client: Client, org_id: str, feeds: dict[int, list[dict[str, Any]]]) -> tuple[list[str], int]:
    """Read the newest, middle and oldest pages of every feed while nothing changes, and compare them with the ledger.

    Returns the differences, and how many feeds were read.
    """
    problems, checked = [], 0
    for kind, usage_kind, feed in all_feeds():
        of_feed = feeds.get(feed, [])[::-1]
        pages = max(1, -(-len(of_feed) // 100))
        for number in sorted({1, 2, 3, pages // 2 + 1, pages}):
            attempts = (client.get(org_id, kind=kind, usage_kind=usage_kind, limit=100, page=number) for _ in range(20))
            page = next(filter(None, attempts), None)
            if (
                page is None
                or page["pages"]["total_items"] != len(of_feed)
                or page["items"] != of_feed[(number - 1) * 100 : number * 100]
            ):
                answer = json.dumps(page and page["pages"])
                problems.append(
                    f"at the end: {org_id} {kind} {usage_kind} page {number}: {answer}, ledger {len(of_feed)}"
                )
        checked += 1
    return problems, checked


def all_feeds() -> Iterator[tuple[str | None, str | None, int]]:
    """Yield kind, usage kind and number of all feeds that can hold movements."""
    yield None, None, 0
    for number, kind in enumerate(Kind, 1):
        yield kind.value, None, number
    for number, usage_kind in enumerate(USAGE_KINDS):
        yield None, usage_kind, 6 + 3 * number
        yield "consume", usage_kind, 7 + 3 * number
        yield "overflow", usage_kind, 8 + 3 * number


def compare_dead_letters(traffic: Traffic, found: dict[str, int], sender: StreamSender) -> tuple[str, list[str]]:
    """Compare the dead letters with the sent events.

    Each refused event must have one. At most as many more may exist as events were sent again.

    Returns a summary, and the differences.
    """
    wanted: Counter[str] = Counter()
    for events in traffic.sent.values():
        wanted += count_refusals(events)
    bad = found.get("undecodable", 0) + found.get("invalid_event", 0)
    pairs = {code: (number, found.get(code, 0)) for code, number in wanted.items()}
    pairs["garbage"] = traffic.counts["garbage"], bad
    more = sender.sent_again + sender.lost_by_valkey
    problems = [
        f"dead letters {code}: {buried} for {sent} sent"
        for code, (sent, buried) in pairs.items()
        if not sent <= buried <= sent + more
    ]
    unexpected = set(found) - {"undecodable", "invalid_event", *wanted}
    problems += [f"unexpected dead letters: {found[code]} {code}" for code in unexpected]
    return ", ".join(f"{buried} {code} of {sent}" for code, (sent, buried) in pairs.items()), problems


def count_refusals(events: list[dict[str, Any]]) -> Counter[str]:
    """Return how many events must be refused, by code. No code depends on a clock."""
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
    return refused
