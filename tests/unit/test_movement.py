import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import RFC_4122, UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typeid import TypeID

from feeds.movement import EPOCH, Kind, Movement, format_id, format_time, render_item
from worker.ledger.hash_chain import format_instant


@given(
    instant=st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    movement_hash=st.binary(min_size=32, max_size=32),
)
def test_an_id_is_the_uuid7_of_the_time_and_the_hash(instant, movement_hash):
    made = TypeID.from_string(format_id(instant, movement_hash))

    found = UUID(bytes=made.uuid.bytes)
    assert (made.prefix, found.version, found.variant) == ("cent", 7, RFC_4122)
    assert found.bytes[:6] == ((instant - EPOCH) // timedelta(milliseconds=1)).to_bytes(6)
    assert (found.bytes[6] & 0xF, found.bytes[7]) == (movement_hash[0] & 0xF, movement_hash[1])
    assert (found.bytes[8] & 0x3F, found.bytes[9]) == (movement_hash[2] & 0x3F, movement_hash[3])
    assert found.bytes[10:] == movement_hash[4:10]


@given(instant=st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(timezone(timedelta(hours=2)))))  # noqa: DTZ001
def test_a_time_is_formatted_in_utc_and_reads_back_as_the_same_instant(instant):
    assert format_time(instant).endswith("Z")
    assert datetime.fromisoformat(format_time(instant)) == instant


@pytest.mark.parametrize("usage_kind", ["ai_usage", None])
def test_an_item_is_the_json_of_a_credit_entry(usage_kind):
    movement = Movement(
        Kind.CONSUME, -10, usage_kind, "u_1", datetime(2026, 6, 1, 10, tzinfo=UTC), hash=bytes.fromhex("07" * 32)
    )

    assert json.loads(render_item(movement)) == {
        "object": "credit_entry",
        "id": "cent_01kt1a0f80ew3re1r70w3ge1r7",
        "kind": "consume",
        "credits": -10,
        **({"usage_kind": usage_kind} if usage_kind else {}),
        "usage_ref": "u_1",
        "created_at": "2026-06-01T10:00:00Z",
    }


def test_the_hour_that_occurs_twice_at_the_end_of_summer_time_is_formatted_as_two():
    first, second = (datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold) for fold in (0, 1))

    assert first == second  # to Python
    assert [format_time(first), format_time(second)] == ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]
    assert [format_instant(first), format_instant(second)] == [
        "2026-10-25T00:30:00.000000Z",
        "2026-10-25T01:30:00.000000Z",
    ]
