import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st
from typeid import TypeID

from feeds.movement import Kind, Movement, format_id, format_time, render_item
from worker.ledger.hash_chain import format_instant


@given(movement_id=st.uuids(version=4))
def test_an_id_is_the_typeid_of_either_class_of_uuid(movement_id):
    fast_id = uuid_utils.UUID(movement_id.hex)

    assert format_id(movement_id) == format_id(fast_id) == str(TypeID.from_uuid(fast_id, "cent"))


@given(instant=st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(timezone(timedelta(hours=2)))))  # noqa: DTZ001
def test_a_time_is_formatted_in_utc_and_reads_back_as_the_same_instant(instant):
    assert format_time(instant).endswith("Z")
    assert datetime.fromisoformat(format_time(instant)) == instant


@pytest.mark.parametrize("usage_kind", ["ai_usage", None])
def test_an_item_is_the_json_of_a_credit_entry(usage_kind):
    movement = Movement(UUID(int=7), Kind.CONSUME, -10, usage_kind, "u_1", datetime(2026, 6, 1, 10, tzinfo=UTC), {0: 1})

    assert json.loads(render_item(movement)) == {
        "object": "credit_entry",
        "id": "cent_00000000000000000000000007",
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
