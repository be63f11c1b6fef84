import asyncio
from collections.abc import Iterator
from itertools import product

import psycopg
import pytest

from feeds.movement import Kind
from feeds.page import Filter, Place, cut, number_of, place_page
from feeds.postgres import Postgres, PostgresAway
from feeds.store import Store, TornLedger, page_query, read_newest, read_place, read_slice
from tests.integration.nested_plans import scans_of
from tests.seed import MIXED, USAGE_KINDS, seed

NUMBERS = {"ai_usage": 0, "tm_usage": 1}
MOVEMENTS = MIXED * 9
FEEDS = [
    feed
    for feed in map(Filter._make, product((None, *Kind), (None, *USAGE_KINDS)))
    if number_of(feed, NUMBERS) is not None
]
SHAPES = [Filter(), Filter(Kind.OVERFLOW), Filter(None, "ai_usage"), Filter(Kind.CONSUME, "ai_usage")]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        seed(connection, "org_other", MIXED * 3)
        seed(connection, "org_a", MOVEMENTS)
        yield connection


def run(database_url, read, *arguments, **options):
    """Return what one of the store's functions reads."""

    async def call():
        postgres = Postgres(database_url, **options)
        try:
            return await read(Store(postgres, NUMBERS), *arguments)
        finally:
            await postgres.close()

    return asyncio.run(call())


def refs(found):
    return [item.split(b'"usage_ref":"')[1].split(b'"')[0].decode() for item in found.items]


def expected(feed, place):
    """Return a feed's count, a page's newest ordinal and its refs, computed from all movements."""
    members = [
        f"ref_{position}"
        for position, movement in enumerate(MOVEMENTS, 1)
        if feed.kind in {None, movement.kind} and feed.usage_kind in {None, movement.usage_kind}
    ]
    span = cut(place, len(members))
    return len(members), span.newest, members[span.below : span.newest][::-1]


@pytest.mark.parametrize("feed", FEEDS, ids=str)
def test_every_page_of_every_feed_holds_what_all_movements_give(connection, database_url, feed):
    places = [
        *(place_page(number, 5) for number in (1, 2, 3, 13, 14, 2**31 - 1)),
        Place(4, ceiling=7),
        Place(4, floor=60),
    ]

    async def read_all(store):
        return [await read_place(store, "org_a", feed, place) for place in places]

    for place, found in zip(places, run(database_url, read_all), strict=True):
        assert (found.total, found.newest, refs(found)) == expected(feed, place)


def test_an_unknown_organisation_has_empty_feeds(connection, database_url):
    found = run(database_url, read_place, "org_unknown", Filter(), Place(5))

    assert (found.total, found.newest, found.items) == (0, 0, [])


def test_a_usage_kind_added_after_an_organisations_last_movement_has_an_empty_feed(connection, database_url):
    connection.execute("INSERT INTO usage_kinds VALUES ('new_usage', 2)")

    async def read(store):
        return await read_place(
            Store(store.postgres, NUMBERS | {"new_usage": 2}), "org_a", Filter(None, "new_usage"), Place(5)
        )

    assert run(database_url, read).total == 0


def test_a_movement_of_a_usage_kind_that_this_process_does_not_know_has_its_name(connection, database_url):
    connection.execute("INSERT INTO usage_kinds VALUES ('new_usage', 2)")
    connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_are_final")
    connection.execute("UPDATE movements SET usage_number = 2 WHERE org_no = 2 AND usage_ref = 'ref_61'")

    found = run(database_url, read_slice, "org_a", Filter(), 61, 61)

    assert b'"usage_kind":"new_usage"' in found.items[0]


def test_a_slice_holds_the_ordinals_that_exist(connection, database_url):
    assert refs(run(database_url, read_slice, "org_a", Filter(), 2, 4)) == ["ref_4", "ref_3", "ref_2"]
    assert refs(run(database_url, read_slice, "org_a", Filter(), 62, 90)) == ["ref_63", "ref_62"]
    assert refs(run(database_url, read_slice, "org_a", Filter(), 70, 90)) == []


def test_the_newest_items_come_with_count_and_epoch(connection, database_url):
    [(epoch,)] = connection.execute("SELECT epoch FROM ledger")

    found = run(database_url, read_newest, "org_a", Filter(Kind.ALLOT), 3)

    assert (found.epoch, found.total, found.newest) == (epoch, 9, 9)
    assert refs(found) == ["ref_57", "ref_50", "ref_43"]


def test_count_and_items_are_of_one_moment_while_movements_are_added(connection, database_url):
    async def read_repeatedly(store):
        found = []
        for number in range(30):
            adding = asyncio.create_task(asyncio.to_thread(seed, connection, "org_a", MIXED[: 1 + number % 3]))
            found += [await read_newest(store, "org_a", Filter(), 3) for _ in range(3)]
            await adding
        return found

    for found in run(database_url, read_repeatedly):
        assert found.newest == found.total
        assert refs(found) == [f"ref_{found.total - back}" for back in range(3)]


def test_a_feed_with_a_gap_gives_no_page(connection, database_url):
    connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_are_final")
    connection.execute("DELETE FROM movements WHERE usage_ref = 'ref_60' AND org_no = 2")

    with pytest.raises(TornLedger):
        run(database_url, read_place, "org_a", Filter(), Place(20))
    assert run(database_url, read_place, "org_a", Filter(), Place(3)).total == len(MOVEMENTS)


@pytest.mark.parametrize("feed", SHAPES, ids=str)
def test_a_page_reads_one_range_of_one_index_and_discards_no_row(connection, database_url, feed):
    seed(connection, "org_a", MIXED * 1500)
    connection.execute("ANALYZE")

    [scan] = scans_of(connection, "movements", *page_query(NUMBERS, "org_a", feed, Place(20, skip=900)))

    assert scan["Node Type"] == "Index Scan"
    assert scan["Scan Direction"] == "Backward"
    assert scan["Actual Rows"] == 20
    assert "Filter" not in scan


@pytest.mark.parametrize("feed", SHAPES, ids=str)
def test_a_page_of_a_small_table_reads_the_index_too(connection, database_url, feed):
    connection.execute("ANALYZE")

    [scan] = scans_of(connection, "movements", *page_query(NUMBERS, "org_a", feed, Place(3)))

    assert (scan["Node Type"], scan["Actual Rows"]) == ("Index Scan", 3)


def test_a_refused_statement_raises_postgres_away(connection, database_url):
    connection.execute("DROP TABLE ledger CASCADE")

    with pytest.raises(PostgresAway, match="UndefinedTable"):
        run(database_url, read_place, "org_a", Filter(), Place(5))
