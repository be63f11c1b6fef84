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


class Counted(Postgres):
    """Counts what it is asked, and can be taken away. The clock of what it told stands still but for `pass_s`."""

    asked = 0
    is_away = False

    async def fetch(self, query, parameters):
        self.asked += 1
        if self.is_away:
            raise PostgresAway("taken away")
        return await super().fetch(query, parameters)


def run(database_url, use):
    """Return what `use` makes of a fresh process's memory: `use(identities, postgres, pass_s)`."""
    passed = [1000.0]  # whole seconds, which add up exactly

    def pass_s(seconds):
        passed[0] += seconds

    async def ask():
        postgres = Counted(database_url)
        try:
            return await use(Identities(postgres, SingleFlight()), postgres, pass_s)
        finally:
            await postgres.close()

    with patch.object(identity, "time", monotonic=lambda: passed[0]):
        return asyncio.run(ask())


def identify(database_url, secret, named_org_id=None):
    async def use(identities, _postgres, _pass_s):
        return (await identities.identify(secret, named_org_id)).org_id

    return run(database_url, use)


def test_an_organisations_key_reads_that_organisation_alone(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")
    create_key(connection, org_id="org_b")

    assert identify(database_url, secret) == "org_a"
    assert identify(database_url, secret, "org_a") == "org_a"
    for other in ["org_b", "org_nobody", "no\0org", "ö" * 100, "a b"]:
        with pytest.raises(Forbidden):
            identify(database_url, secret, other)


@pytest.mark.parametrize(
    ("role", "may_read"), [("owner", True), ("admin", True), ("billing", True), ("member", False), (None, False)]
)
def test_a_personal_key_reads_where_its_persons_role_grants_it(connection, database_url, role, may_read):
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


def test_a_personal_key_that_names_no_organisation_has_none(connection, database_url):
    _, secret = create_key(connection, user_id="ann")

    assert identify(database_url, secret) is None
    for name in ["no\0org", "org_nobody"]:
        with pytest.raises(Forbidden):
            identify(database_url, secret, name)


def test_a_key_without_the_permission_is_forbidden(connection, database_url):
    _, orgs = create_key(connection, org_id="org_a", permissions=["billing:write"])
    _, persons = create_key(connection, user_id="ann", permissions=[])
    set_member(connection, "org_a", "ann", "owner")

    for secret in (orgs, persons):
        with pytest.raises(Forbidden):
            identify(database_url, secret, "org_a")


def test_unknown_revoked_and_expired_keys_are_the_same_to_a_reader(connection, database_url):
    revoked, secret_revoked = create_key(connection, org_id="org_a")
    revoke_key(connection, revoked.key_id)
    _, secret_expired = create_key(connection, org_id="org_a", expires_at=datetime.now(UTC) - timedelta(seconds=1))

    for secret in (new_secret(), secret_revoked, secret_expired):
        with pytest.raises(IdentityMissing):
            identify(database_url, secret)


def test_a_mistyped_key_never_reaches_postgres(database_url):
    async def use(identities, postgres, _pass_s):
        for secret in ["", "x", "ufk_", new_secret()[:-1], new_secret() + "\0", "ufk_" + "é" * 36]:
            with pytest.raises(IdentityMissing):
                await identities.identify(secret, None)
        return postgres.asked

    assert run(database_url, use) == 0


def test_an_answer_is_used_for_ten_seconds_and_a_revoked_key_stops_then(connection, database_url):
    key, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        revoke_key(connection, key.key_id)
        pass_s(9.9)
        assert (await identities.identify(secret, None)).org_id == "org_a"
        assert postgres.asked == 1
        pass_s(0.1)
        for _ in range(2):
            with pytest.raises(IdentityMissing):
                await identities.identify(secret, None)
        return postgres.asked

    assert run(database_url, use) == 2


def test_a_membership_that_ended_stops_within_ten_seconds(connection, database_url):
    _, secret = create_key(connection, user_id="ann")
    set_member(connection, "org_a", "ann", "billing")

    async def use(identities, _postgres, pass_s):
        await identities.identify(secret, "org_a")
        remove_member(connection, "org_a", "ann")
        pass_s(10)
        with pytest.raises(Forbidden):
            await identities.identify(secret, "org_a")

    run(database_url, use)


def test_a_key_ends_at_its_instant_though_its_answer_is_remembered(connection, database_url, wait_until):
    _, secret = create_key(connection, org_id="org_a", expires_at=datetime.now(UTC) + timedelta(seconds=1))

    async def use(identities, postgres, _pass_s):
        assert (await identities.identify(secret, None)).org_id == "org_a"
        while True:
            try:
                await identities.identify(secret, None)
            except IdentityMissing:
                return postgres.asked
            await asyncio.sleep(0.02)

    assert run(database_url, use) == 1


def test_a_refusal_is_remembered_for_a_second(connection, database_url):
    _, secret = create_key(connection, user_id="ann")

    async def use(identities, postgres, pass_s):
        for _ in range(5):
            with pytest.raises(Forbidden):
                await identities.identify(secret, "org_a")
        assert postgres.asked == 1
        set_member(connection, "org_a", "ann", "billing")
        pass_s(1)
        return (await identities.identify(secret, "org_a")).org_id

    assert run(database_url, use) == "org_a"


def test_without_postgres_no_answer_is_used_beyond_five_minutes_however_late_it_was_recalled(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        pass_s(299)
        grant = await identities.identify(secret, None)
        assert grant.ask_after <= grant.answered_at + identity.KEPT_S

    run(database_url, use)


def test_without_postgres_a_key_is_good_for_five_minutes_after_postgres_last_said_so(connection, database_url):
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


def test_a_key_that_was_revoked_while_postgres_was_away_stops_within_ten_seconds_of_its_return(
    connection, database_url
):
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


def test_a_thousand_requests_with_one_key_ask_once(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, _pass_s):
        answers = await asyncio.gather(*(identities.identify(secret, None) for _ in range(1000)))
        return {grant.org_id for grant in answers}, postgres.asked

    assert run(database_url, use) == ({"org_a"}, 1)


def test_neither_memory_grows_beyond_its_bound(connection, database_url):
    _, secret = create_key(connection, user_id="ann")
    for number in range(4):
        set_member(connection, f"org_{number}", "ann", "owner")

    async def use(identities, _postgres, _pass_s):
        for number in range(8):
            try:
                await identities.identify(secret, f"org_{number}")
            except Forbidden:
                assert number >= 4
        return len(identities._granted), len(identities._refused)

    with patch.object(identity, "KNOWN_MAX", 3), patch.object(identity, "REFUSED_MAX", 2):
        assert run(database_url, use) == (3, 2)


def test_the_last_use_is_noted_once_a_minute_and_never_by_the_request_itself(connection, database_url):
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


def test_a_last_use_that_cannot_be_noted_disturbs_nobody(connection, database_url):
    _, secret = create_key(connection, org_id="org_a")

    async def use(identities, postgres, _pass_s):
        await identities.identify(secret, None)
        postgres.is_away = True
        await identities.note_uses()
        return (await identities.identify(secret, None)).org_id

    assert run(database_url, use) == "org_a"
