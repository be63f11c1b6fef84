"""May this Redis user run the commands that its program needs?

Commands are queued in MULTI, where Redis checks the user's rights, and DISCARD throws them away. (ACL DRYRUN tells the
same, but only administrators may use it.)
"""

from collections.abc import Collection, Sequence
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from worker.broker.app import DRAINS, EVENTS
from worker.broker.transport import CONSUMERS, HELD
from worker.doctor.finding import Finding, fine, list_names, mend
from worker.doctor.redis_server import BROKER, FEEDS, STREAMS
from worker.intake.counters import COUNTS
from worker.intake.streams import AWAKE, delivery_key, stream_of
from worker.intake.sweep import SETTLES, SWEPT

Command = tuple[str, ...]
STREAM, HASH = stream_of(0), "feeds:0:{org}"
LIMITS = "limits:{0}"
HELD_BY_US = f"{HELD}doctor"

NEEDS: dict[str, tuple[Command, ...]] = {
    STREAMS: (
        ("TIME",), ("INFO",), ("WATCH", delivery_key("x")), ("EXISTS", delivery_key("x")),
        ("XADD", STREAM, "*", "event", "{}"), ("XLEN", STREAM), ("XRANGE", STREAM, "-", "+"),
        ("XREAD", "STREAMS", STREAM, "0"), ("XDEL", STREAM, "0-1"), ("XINFO", "STREAM", STREAM),
        ("EVAL", "return 0", "1", STREAM), ("GET", SWEPT), ("SET", AWAKE, "0"), ("DEL", AWAKE),
        ("HSET", SETTLES, "0", "0"), ("HGETALL", SETTLES), ("HDEL", SETTLES, "0"), ("HINCRBY", COUNTS, "0", "1"),
    ),
    FEEDS: (
        ("INFO",), ("EVAL", "return 0", "1", HASH), ("EVALSHA", "0" * 40, "1", HASH), ("SCRIPT", "LOAD", "return 0"),
        ("HGET", HASH, "gen"), ("HSET", HASH, "0", "0"), ("LRANGE", f"{HASH}:0", "0", "-1"),
        ("RPUSH", f"{HASH}:0", "0"), ("UNLINK", HASH), ("PEXPIRE", HASH, "1"), ("PTTL", HASH),
    ),
    BROKER: (
        ("BLMOVE", EVENTS, HELD_BY_US, "RIGHT", "LEFT", "1"), ("LMOVE", HELD_BY_US, EVENTS, "LEFT", "RIGHT"),
        ("LREM", HELD_BY_US, "-1", "0"), ("RPUSH", EVENTS, "0"), ("LPUSH", DRAINS, "0"), ("BRPOP", DRAINS, "1"),
        ("LLEN", DRAINS), ("DEL", DRAINS), ("EVAL", "return 0", "1", CONSUMERS), ("HSET", CONSUMERS, "0", "0"),
        ("SADD", "_kombu.binding.events", "0"), ("SMEMBERS", "_kombu.binding.events"), ("HSET", "unacked", "0", "0"),
        ("HDEL", "unacked", "0"), ("ZADD", "unacked_index", "0", "0"), ("ZREM", "unacked_index", "0"),
        ("ZREVRANGEBYSCORE", "unacked_index", "0", "0"), ("PUBLISH", "/0.celery.pidbox", "0"),
    ),
}  # fmt: skip
"""What the worker's user needs, by what the Redis holds."""
READER_NEEDS: tuple[Command, ...] = (
    ("INFO",), ("EVAL", "return 0", "1", HASH), ("EVALSHA", "0" * 40, "1", LIMITS), ("HGET", HASH, "gen"),
    ("HSET", HASH, "0", "0"), ("LRANGE", f"{HASH}:0", "0", "-1"), ("RPUSH", f"{HASH}:0", "0"), ("UNLINK", HASH),
    ("PEXPIRE", HASH, "1"), ("PEXPIREAT", HASH, "1"), ("GET", LIMITS), ("SET", LIMITS, "0"), ("TIME",),
)  # fmt: skip
"""What the endpoint's user needs."""


def needs_of(holds: Collection[str], *, of_reader: bool = False) -> list[Command]:
    """Return the commands that a user needs, each once."""
    commands = READER_NEEDS if of_reader else [command for use in NEEDS if use in holds for command in NEEDS[use]]
    return list(dict.fromkeys(commands))


def read_refused(client: Redis, commands: Sequence[Command]) -> list[Command]:
    """Return the commands that the user may not run. None of them is run. Raises redis.ConnectionError."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        [begun] = exchange(connection, [("MULTI",)])
        if begun != b"OK":  # nothing would be queued: commands would run
            return [("MULTI",)]
        replies = exchange(connection, [*commands, ("DISCARD",)])
    finally:
        connection.disconnect()
        pool.release(connection)
    return [command for command, reply in zip(commands, replies, strict=False) if isinstance(reply, NoPermissionError)]


def exchange(connection: Any, commands: Sequence[Command]) -> list[object]:
    """Send commands and read as many replies. An error is a value."""
    connection.send_packed_command(connection.pack_commands(commands))
    return [read_reply(connection) for _ in commands]


def read_reply(connection: Any) -> object:
    """Read one reply. An error is a value."""
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def judge_refused(user: str, refused: Sequence[Command]) -> list[Finding]:
    """Judge which commands a user may not run."""
    if not refused:
        return [fine("rights", f"The user `{user}` may run every command that is needed.")]
    names = list(dict.fromkeys(f"{command[0]} {key_of(command)}".strip() for command in refused))
    return [
        mend(
            "rights",
            f"The user `{user}` may not run {list_names(names)}.",
            "What needs it fails while the rest works.",
            "Give the user the line of its program from deploy/redis.acl.",
        )
    ]


def key_of(command: Command) -> str:
    """Return the key of a command, to show it."""
    name, *arguments = command
    if name in {"EVAL", "EVALSHA"}:
        return arguments[2]
    if name in {"XREAD", "XINFO"}:
        return STREAM
    return arguments[0] if arguments and name != "SCRIPT" else ""
