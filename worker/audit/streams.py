"""Can every shard's stream take entries, and is every stream read?"""

from collections.abc import Iterator
from pathlib import Path

from redis import Redis

from worker.audit.finding import Finding
from worker.intake.streams import stream_of

SCRIPT = Path(__file__).with_suffix(".lua").read_text()

LARGEST_ID = b"18446744073709551615-18446744073709551615"
"""Once a stream has given out this id, Redis refuses every further entry."""


def audit_streams(streams: Redis, event_shards: int) -> list[Finding]:
    """Report shards whose key is not a stream or can take no more entries, and streams that no worker reads."""
    keys = [stream_of(shard) for shard in range(event_shards)]
    with streams.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.type(key)
        types = [type_.decode() for type_ in pipeline.execute()]
    findings = [
        Finding(None, "stream_is_a_stream", key, "a stream", f"a {type_}")
        for key, type_ in zip(keys, types, strict=True)
        if type_ not in {"stream", "none"}
    ]
    for key, type_ in zip(keys, types, strict=True):
        if type_ == "stream" and read_last_generated_id(streams, key) == LARGEST_ID:
            findings.append(Finding(None, "stream_has_room", key, "an id below the largest", LARGEST_ID.decode()))
    return [*findings, *find_stray_streams(streams, set(keys))]


def read_last_generated_id(streams: Redis, key: str) -> object:
    """Return the largest id that a stream has ever given out, as bytes."""
    return streams.eval(SCRIPT, 1, key)


def find_stray_streams(streams: Redis, keys: set[str]) -> Iterator[Finding]:
    """Report streams of shards that the ledger does not have. Some producer has another value of EVENT_SHARDS."""
    for key in streams.scan_iter(match="events:{*}", count=1000, _type="stream"):
        name = key.decode("utf-8", "backslashreplace")
        if name not in keys and (length := streams.xlen(key)):
            yield Finding(None, "stream_has_a_shard", name, "no entries", f"{length} entries")
