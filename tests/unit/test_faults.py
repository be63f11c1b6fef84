"""Whose fault an error is."""

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from psycopg import errors

from worker.ledger.faults import EVENT_CLASSES, SURROUNDING_CLASSES, describe, may_be_an_events

CODES = {code for error in vars(errors).values() if isinstance(code := getattr(error, "sqlstate", None), str)}


def test_every_class_of_sqlstate_is_decided_once_with_a_reason():
    assert {code[:2] for code in CODES} <= EVENT_CLASSES.keys() | SURROUNDING_CLASSES.keys()
    assert EVENT_CLASSES.keys() & SURROUNDING_CLASSES.keys() == set()
    assert all(EVENT_CLASSES.values())
    assert all(SURROUNDING_CLASSES.values())


@pytest.mark.parametrize("code", ["22003", "23514", "54000", "P0001", "XX000"])
def test_an_event_may_be_the_cause_of_some_errors_of_postgres(code):
    assert may_be_an_events(errors.lookup(code)(""))


@pytest.mark.parametrize(
    "code",
    ["08006", "0A000", "25006", "3F000", "40001", "42501", "53100", "57014", "72000", "HV000", "XX001", "XX002"],
)
def test_no_event_is_the_cause_of_the_others(code):
    assert not may_be_an_events(errors.lookup(code)(""))


def test_a_class_that_postgres_does_not_have_is_no_events_fault():
    class OtherEngineError(errors.DataError):
        sqlstate = "YB001"

    assert not may_be_an_events(OtherEngineError(""))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TypeError("x"), True),
        ("\ud800".encode, True),
        (RecursionError(), True),
        (Exception("x"), True),
        (errors.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), True),
        (errors.OperationalError("the connection is lost"), False),
        (errors.InterfaceError("the connection is closed"), False),
        (SoftTimeLimitExceeded(), False),
        (MemoryError(), False),
        (BrokenPipeError(), False),
    ],
)
def test_an_event_may_be_the_cause_of_most_errors_without_a_code(error, expected):
    if callable(error):
        with pytest.raises(UnicodeEncodeError) as raised:
            error()
        error = raised.value
    assert may_be_an_events(error) is expected


def test_a_description_is_one_line_that_any_database_can_store():
    assert describe(ValueError("a\x00b\ud800\nsecond")) == "ValueError: a\\0b\\ud800"
    assert describe(ValueError()) == "ValueError"
    assert describe(errors.NumericValueOutOfRange("too large")) == "NumericValueOutOfRange (SQLSTATE 22003): too large"
    assert len(describe(ValueError("x" * 1000))) < 320
