"""Which bytes are an event, and what does the refusal of all others say?"""

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest

from worker.events import EventInvalid, EventUndecodable, check_event, format_labels, parse_event, parse_time

USAGE = '{"type":"usage","org_id":"o","usage_ref":"r","usage_kind":"ai_usage","credits":5}'
GRANT = '{"type":"grant","org_id":"o","grant_ref":"g","credits":5,"source":"plan","priority":0}'
WHOLE_NUMBER = "must be a whole number, written like 5: without quotes, point or exponent"


def refused_fields(text):
    with pytest.raises(EventInvalid) as refused:
        parse_event(text.encode() if isinstance(text, str) else text)
    return refused.value.fields


def with_last(text, more):
    """Return the JSON of an object with more behind its last field."""
    return text.removesuffix("}") + more + "}"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (',"credits":6', "credits"),
        (',"credits":5', "credits"),
        (',"org_id":"p"', "org_id"),
        (',"org\\u005fid":"p"', "org_id"),
        (',"org_id" :"p"', "org_id"),
        (',"org_id"\t\r\n : "p"', "org_id"),
        (',"type":"usage"', "type"),
        (',"occurred_at":null,"occurred_at":"2026-06-01T10:00:00Z"', "occurred_at"),
    ],
)
def test_a_field_that_is_given_twice_is_refused_and_named(more, field):
    assert refused_fields(with_last(USAGE, more)) == {field: "is given 2 times"}


def test_repeated_fields_are_refused_in_every_spacing():
    fields = '"type":"revoke","org_id":"o","grant_ref":"g","reason":"a","reason":"b"'
    for colon in (":", " :", ": ", " : ", "\n:\t"):
        assert refused_fields("{" + fields.replace(":", colon) + "}") == {"reason": "is given 2 times"}


@pytest.mark.parametrize("reason", ['say \\":', '\\":\\":\\":', '\\"a\\":1,\\"a\\":2', ' : ":'.replace('"', '\\"')])
def test_a_text_that_looks_like_a_field_is_a_text(reason):
    event = parse_event(f'{{"type":"revoke","org_id":"o","grant_ref":"g","reason":"{reason}"}}'.encode())

    assert event.reason == json.loads(f'"{reason}"')


def test_any_whitespace_that_json_allows_is_taken():
    spaced = USAGE.replace(":", " :\n").replace(",", "\t,\r ")

    assert parse_event(b" \t\r\n" + spaced.encode() + b" \r\n").credits == 5


@pytest.mark.parametrize(
    "number",
    ["5.0", "1e3", "1E3", "5e0", "-0.0", "1e400", "NaN", "Infinity", "-Infinity", '"5"', "true", "null", "[5]"],
)
def test_a_number_that_is_not_written_in_digits_is_refused_with_the_form_to_send(number):
    assert refused_fields(USAGE.replace("5}", number + "}")) == {"credits": WHOLE_NUMBER}
    assert refused_fields(GRANT.replace(":0}", f":{number}}}")) == {"priority": WHOLE_NUMBER}


def test_minus_zero_is_refused_and_zero_is_taken():
    assert refused_fields(USAGE.replace("5}", "-0}")) == {"credits": "must be 0, not -0"}
    assert refused_fields(GRANT.replace(":0}", ": -0 }")) == {"priority": "must be 0, not -0"}
    assert parse_event(USAGE.replace("5}", "0}").encode()).credits == 0
    assert parse_event(GRANT.encode()).priority == 0


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xef\xbb\xbf" + USAGE.encode(), "byte order mark"),
        (USAGE.encode("utf-16"), "UTF-16"),
        (USAGE.encode("utf-16-be"), "UTF-16"),
        (USAGE.encode("utf-16-le"), "UTF-16"),
        (USAGE.encode("utf-32"), "UTF-32"),
        (gzip.compress(USAGE.encode()), "compressed"),
        (USAGE.replace('"r"', '"é"').encode("latin-1"), "byte 43 is not UTF-8"),
        (USAGE.replace('"r"', '"\\ud800"').encode(), "hex escape"),
        (USAGE.encode() + b"\0", "trailing characters"),
        (USAGE.encode() + USAGE.encode(), "trailing characters"),
        (b"[" * 60_000, "recursion limit"),
        (b'{"a":' * 10_000, "recursion limit"),
        (USAGE.replace("5}", "[" * 500).encode(), "recursion limit"),
        (USAGE.replace("5}", "05}").encode(), "invalid number"),
        (USAGE.replace("5}", "+5}").encode(), "expected value"),
        (USAGE.replace("5}", "1" * 5000 + "}").encode(), "number out of range"),
        (USAGE.replace('"', "'").encode(), "key must be a string"),
    ],
)
def test_bytes_that_are_not_json_in_utf_8_are_refused_with_what_they_are(raw, words):
    with pytest.raises(EventUndecodable, match=words):
        parse_event(raw)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T24:00:00Z",
        "2026-01-01T23:59:60Z",
        "2026-01-01T23:60:00Z",
        "2026-01-01T00:00:00+24:00",
        "2026-01-01T00:00:00+10:60",
        "2026-01-01T00:00:00",
        "2026-01-01 00:00:00Z",
        "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+05:00",
        "9999-12-31T23:00:00-05:00",
        "2000-01-01T00:00:00+05:00",
        "8999-12-31T23:00:00-05:00",
    ],
)
def test_an_unusable_time_is_refused_on_every_version_of_python(text):
    with pytest.raises(ValueError, match=r"must|day|year"):
        parse_time(text)


def test_the_years_of_a_time_are_judged_in_utc():
    assert parse_time("1999-12-31T23:00:00-05:00") == datetime(2000, 1, 1, 4, tzinfo=UTC)
    assert parse_time("9000-01-01T00:00:00+05:00").year == 8999
    assert parse_time(datetime(2000, 1, 1, tzinfo=timezone(timedelta(hours=-5)))).tzinfo is UTC


def test_a_datetime_whose_zone_knows_no_offset_is_refused():
    class Unknown(tzinfo):
        def utcoffset(self, _moment):
            return None

    usage = json.loads(USAGE) | {"occurred_at": datetime(2026, 1, 1, tzinfo=Unknown())}
    with pytest.raises(EventInvalid) as refused:
        check_event(usage)
    assert list(refused.value.fields) == ["occurred_at"]


LABELS = {"user": "Zoë \\ ann", "request": "a=b c"}


@pytest.mark.parametrize("event", [USAGE, GRANT])
def test_labels_are_taken_in_their_order(event):
    labels = parse_event(with_last(event, f',"labels":{json.dumps(LABELS)}').encode()).labels

    assert list(labels.items()) == list(LABELS.items())
    assert format_labels(labels) == '{"user":"Zoë \\\\ ann","request":"a=b c"}'


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({f"n{number}": "" for number in range(9)}, "labels"),
        ({f"n{number}": "x" * 120 for number in range(5)}, "labels"),
        ({"a": "é" * 127, "b": "é" * 127}, "labels"),
        ({"A": "x"}, "labels.A.[key]"),
        ({"": "x"}, "labels..[key]"),
        ({"a" * 33: "x"}, f"labels.{'a' * 33}.[key]"),
        ({"a": "x" * 129}, "labels.a"),
        ({"a": "\x00"}, "labels.a"),
        ({"a": 5}, "labels.a"),
        ({"a": {"b": "c"}}, "labels.a"),
        ([], "labels"),
        ("x", "labels"),
    ],
)
def test_labels_that_are_too_many_too_long_or_no_texts_are_refused(labels, field):
    assert field in refused_fields(with_last(USAGE, f',"labels":{json.dumps(labels)}'))


def test_a_label_that_is_given_twice_is_refused_and_named():
    assert refused_fields(with_last(USAGE, ',"labels":{"a":"x","a":"y"}')) == {"labels.a": "is given 2 times"}
    assert refused_fields(with_last(USAGE, ',"labels":{"a":"x"},"labels":{"a":"x"}'))["labels"] == "is given 2 times"
    assert not parse_event(with_last(USAGE, ',"labels":{}').encode()).labels
