import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from feeds.endpoint import identity
from feeds.endpoint.errors import Forbidden, IdentityMissing
from feeds.endpoint.identity import Identities
from feeds.keys import create_key, list_keys, new_secret, remove_member, revoke_key, set_member
from feeds.postgres import Postgres, PostgresAway
from feeds.single_flight import SingleFlight


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


class CountingPostgres(Postgres):
    """Counts its queries, and can be made unreachable."""

    queries = 0
    is_away = False

    async def fetch(self, query, parameters, **options):
        self.queries += 1
        if self.is_away:
            raise PostgresAway("made unreachable")
        return await super().fetch(query, parameters, **options)


def run(database_url, use):
    """Return what `use(identities, postgres, pass_s)` returns in a new process's memory.

    The process's monotonic clock stands still until `pass_s` advances it.
    """
    passed = [1000.0]  # a float that adds whole seconds exactly

    def pass_s(seconds):
        passed[0] += seconds

    async def use_new_process():
        postgres = CountingPostgres(database_url)
        try:
            return await use(Identities(postgres, SingleFlight()), postgres, pass_s)
        finally:
            await postgres.close()

    with patch.object(identity, "time", monotonic=lambda: passed[0]):
        return asyncio.run(use_new_process())


def identify(database_url, secret, named_org_id=None):
    async def use(identities, _postgres, _pass_s):
        return (await identities.identify(secret, named_org_id)).org_id

    return run(database_url, use)


def test_an_organisations_key_reads_only_that_organisation(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")
    create_key(connection, org_id="org_b")

    assert identify(database_url, secret) == "org_a"
    assert identify(database_url, secret, "org_a") == "org_a"
    for other in ["org_b", "org_unknown", "no\0org", "ö" * 100, "a b"]:
        with pytest.raises(Forbidden):
            identify(database_url, secret, other)


@pytest.mark.parametrize(
    ("role", "may_read"), [("owner", True), ("admin", True), ("billing", True), ("member", False), (None, False)]
)
def test_a_personal_key_reads_an_organisation_if_its_owners_role_grants_it(connection, database_url, role, may_read):
    _, secret = create_key(connection, user_id="ann@example.com")
    set_member(connection, "org_a", "bob@example.com", "owner")
    set_member(connection, "org_b", "ann@example.com", "owner")
    if role:
        set_member(connection, "org_a", "ann@example.com", role)

    if may_read:
        assert identify(database_url, secret, "org_a") == "org_a"
    else:
        with pytest.raises(Forbidden):
            identify(database_url, secret, "org_a")


def test_a_personal_key_without_a_named_organisation_has_none(connection, database_url):
    _, secret = create_key(connection, user_id="ann")

    assert identify(database_url, secret) is None
    for name in ["no\0org", "org_unknown"]:
        with pytest.raises(Forbidden):
            identify(database_url, secret, name)


def test_a_key_without_the_permission_is_forbidden(connection, database_url):
    _, organisations_key = create_key(connection, org_id="org_a", permissions=["billing:write"])
    _, personal_key = create_key(connection, user_id="ann", permissions=[])
    set_member(connection, "org_a", "ann", "owner")

    for secret in (organisations_key, personal_key):
        with pytest.raises(Forbidden):
            identify(database_url, secret, "org_a")


def test_unknown_revoked_and_expired_keys_get_the_same_error(connection, database_url):
    revoked, revoked_secret = create_key(connection, org_id="org_a")
    revoke_key(connection, revoked.key_id)
    _, expired_secret = create_key(connection, org_id="org_a", expires_at=datetime.now(UTC) - timedelta(seconds=1))

    for secret in (new_secret(), revoked_secret, expired_secret):
        with pytest.raises(IdentityMissing):
            identify(database_url, secret)


def test_a_mistyped_key_never_reaches_postgres(database_url):
    async def use(identities, postgres, _pass_s):
        for secret in ["", "x", "ufk_", new_secret()[:-1], new_secret() + "\0", "ufk_" + "é" * 36]:
            with pytest.raises(IdentityMissing):
                await identities.identify(secret, None)
        return postgres.queries

    assert run(database_url, use) == 0


def test_an_access_is_remembered_for_ten_seconds_and_a_revoked_key_is_refused_then(connection, database_url):
    key, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        revoke_key(connection, key.key_id)
        pass_s(9.9)
        assert (await identities.identify(secret, None)).org_id == "org_a"
        assert postgres.queries == 1
        pass_s(0.1)
        for _ in range(2):
            with pytest.raises(IdentityMissing):
                await identities.identify(secret, None)
        return postgres.queries

    assert run(database_url, use) == 2


def test_a_removed_member_is_refused_within_ten_seconds(connection, database_url):
    _, secret = create_key(connection, user_id="ann")
    set_member(connection, "org_a", "ann", "billing")

    async def use(identities, _postgres, pass_s):
        await identities.identify(secret, "org_a")
        remove_member(connection, "org_a", "ann")
        pass_s(10)
        with pytest.raises(Forbidden):
            await identities.identify(secret, "org_a")

    run(database_url, use)


def test_a_key_expires_at_its_time_although_its_access_is_remembered(connection, database_url, wait_until):
    _, secret = create_key(connection, org_id="org_a", expires_at=datetime.now(UTC) + timedelta(seconds=1))

    async def use(identities, postgres, _pass_s):
        assert (await identities.identify(secret, None)).org_id == "org_a"
        while True:
            try:
                await identities.identify(secret, None)
            except IdentityMissing:
                return postgres.queries
            await asyncio.sleep(0.02)

    assert run(database_url, use) == 1


def test_a_denial_is_remembered_for_a_second(connection, database_url):
    _, secret = create_key(connection, user_id="ann")

    async def use(identities, postgres, pass_s):
        for _ in range(5):
            with pytest.raises(Forbidden):
                await identities.identify(secret, "org_a")
        assert postgres.queries == 1
        set_member(connection, "org_a", "ann", "billing")
        pass_s(1)
        return (await identities.identify(secret, "org_a")).org_id

    assert run(database_url, use) == "org_a"


def test_without_postgres_an_access_recalled_late_is_not_used_longer_than_five_minutes(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        pass_s(299)
        access = await identities.identify(secret, None)
        assert access.check_after <= access.checked_at + identity.USABLE_S

    run(database_url, use)


def test_without_postgres_a_key_is_accepted_for_five_minutes_after_its_last_check(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        for _ in range(30):
            pass_s(10)
            assert (await identities.identify(secret, None)).org_id == "org_a"
        pass_s(5)
        with pytest.raises(PostgresAway):
            await identities.identify(secret, None)
        with pytest.raises(PostgresAway):
            await identities.identify(new_secret(), None)

    run(database_url, use)


def test_a_key_revoked_while_postgres_was_away_is_refused_within_ten_seconds_of_its_return(connection, database_url):
    key, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        pass_s(60)
        await identities.identify(secret, None)
        revoke_key(connection, key.key_id)
        postgres.is_away = False
        pass_s(10)
        with pytest.raises(IdentityMissing):
            await identities.identify(secret, None)
        postgres.is_away = True
        pass_s(10)
        with pytest.raises(PostgresAway):
            await identities.identify(secret, None)

    run(database_url, use)


def test_a_thousand_requests_at_once_with_one_key_share_one_query(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, _pass_s):
        accesses = await asyncio.gather(*(identities.identify(secret, None) for _ in range(1000)))
        return {access.org_id for access in accesses}, postgres.queries

    assert run(database_url, use) == ({"org_a"}, 1)


def test_remembered_accesses_and_denials_are_bounded(connection, database_url):
    _, secret = create_key(connection, user_id="ann")
    for number in range(4):
        set_member(connection, f"org_{number}", "ann", "owner")

    async def use(identities, _postgres, _pass_s):
        for number in range(8):
            try:
                await identities.identify(secret, f"org_{number}")
            except Forbidden:
                assert number >= 4
        return len(identities._accesses), len(identities._denials)

    with patch.object(identity, "ACCESSES_MAX", 3), patch.object(identity, "DENIALS_MAX", 2):
        assert run(database_url, use) == (3, 2)


def test_the_last_use_is_noted_once_a_minute_and_never_within_the_request(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")
    noted = []

    def last_used_at():
        return list_keys(connection)[0].last_used_at

    async def use(identities, _postgres, pass_s):
        await identities.identify(secret, None)
        assert last_used_at() is None
        for _ in range(3):
            await identities.note_uses()
            noted.append(last_used_at())
            pass_s(10)
            await identities.identify(secret, None)
        connection.execute("UPDATE api_keys SET last_used_at = last_used_at - interval '60 seconds'")
        pass_s(10)
        await identities.identify(secret, None)
        await identities.note_uses()
        noted.append(last_used_at())

    run(database_url, use)
    assert noted[0] == noted[1] == noted[2] is not None
    assert noted[3] > noted[0]


def test_a_last_use_that_cannot_be_noted_does_not_fail_the_request(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, _pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        await identities.note_uses()
        return (await identities.identify(secret, None)).org_id

    assert run(database_url, use) == "org_a"
