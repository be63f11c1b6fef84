"""How an endpoint learns the ledger's epoch while the database is broken or restored."""

from uuid import uuid4

import psycopg
import pytest

from feeds.cached.epoch import fetch_epoch, read_epoch
from feeds.cached.reader import CachedFeeds
from feeds.postgres import Postgres, PostgresAway
from feeds.schema import LedgerEmpty
from tests.integration.feed_ledger import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def database(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def postgres(database_url):
    postgres = Postgres(database_url, concurrency=1)
    yield postgres
    await postgres.close()


def empty_the_ledger(database):
    """Leave the database as it is in the middle of a restore: the tables exist, the ledger's row does not."""
    database.execute("CREATE TEMP TABLE saved AS TABLE ledger")
    database.execute("DELETE FROM ledger")


def restore_the_ledger(database):
    """Restore the ledger's row, and give it a new epoch, as `usage-feeds rebuild` does. Returns the epoch."""
    database.execute("INSERT INTO ledger TABLE saved")
    database.execute("UPDATE ledger SET epoch = gen_random_uuid()")
    return read_epoch(database)


async def test_both_sides_are_told_that_the_ledger_is_empty(database, postgres):
    assert await fetch_epoch(postgres) == read_epoch(database)
    empty_the_ledger(database)

    with pytest.raises(PostgresAway, match="finish the restore"):
        await fetch_epoch(postgres)
    with pytest.raises(LedgerEmpty):
        read_epoch(database)
    epoch = restore_the_ledger(database)
    assert await fetch_epoch(postgres) == epoch


async def test_the_epoch_is_learnt_again_once_an_empty_ledger_is_restored(database, postgres, redis_url, caplog):
    failures = []

    async def fetch():
        try:
            return await fetch_epoch(postgres)
        except Exception as error:
            failures.append(error)
            raise

    async with CachedFeeds(redis_url, fetch) as cache:
        before = cache.epochs.current
        assert before == read_epoch(database)
        empty_the_ledger(database)
        await until(lambda: failures)
        assert cache.epochs.current == before  # nothing can be committed, so the last epoch still holds

        after = restore_the_ledger(database)
        await until(lambda: cache.epochs.current == after, within_s=5)
        assert cache.epochs.ended == before
    assert caplog.records == []


async def test_the_epoch_is_learnt_again_after_an_unexpected_error(redis_url, caplog):
    epochs = [uuid4(), None, None, uuid4()]
    expected = epochs[-1]

    async def fetch():
        epoch = epochs.pop(0) if len(epochs) > 1 else epochs[0]
        if epoch is None:
            raise ValueError("unexpected")
        return epoch

    async with CachedFeeds(redis_url, fetch) as cache:
        await until(lambda: cache.epochs.current == expected, within_s=5)
    assert [record.exc_info[0] for record in caplog.records] == [ValueError]
