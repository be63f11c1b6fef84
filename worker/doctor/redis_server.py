"""Is a Redis or Valkey set up for what it holds: the streams, the broker's queues, the cached feeds?"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import ResponseError

from feeds.addresses.redis import RedisAddress
from worker.doctor.finding import Finding, fine, mend, note
from worker.doctor.machine import is_this_machine

STREAMS, FEEDS, BROKER = "streams", "feeds", "broker"
"""What a Redis may hold."""
KEEPS = {STREAMS, BROKER}
"""What must survive, and must not be evicted."""
VERSION_MIN = {"Redis": (7, 0), "Valkey": (7, 2)}
FULL = 0.7
"""Above this part of its memory a server gets a remark: when it is full it takes no more events."""
BUSY = 0.8
SECTIONS = ("server", "clients", "memory", "persistence", "replication", "cluster")


class Server(NamedTuple):
    """What a Redis reports: the fields of INFO, and `appendfsync` (None if CONFIG GET is refused)."""

    facts: Mapping[str, Any]
    synced: str | None

    def number(self, name: str) -> int:
        """Return a field of INFO that is a number; 0 if it is missing."""
        value = self.facts.get(name, 0)
        return value if isinstance(value, int) else 0

    @property
    def ids(self) -> tuple[str, str] | None:
        """Return the ids by which cached feeds know this server; None if it does not tell them."""
        run_id, replication_id = self.facts.get("run_id"), self.facts.get("master_replid")
        return (str(run_id), str(replication_id)) if run_id and replication_id else None


def read_server(client: Redis) -> Server | None:
    """Return what a Redis reports, None if INFO is refused. Raises redis.ConnectionError or TimeoutError."""
    facts: dict[str, Any] = {}
    try:
        for section in SECTIONS:
            facts |= client.info(section)
    except ResponseError:
        return None
    try:
        synced = client.config_get("appendfsync").get("appendfsync")
    except ResponseError:
        synced = None
    return Server(facts, synced)


def judge_server(server: Server | None, holds: Collection[str]) -> list[Finding]:
    """Judge a server for all that it holds."""
    if server is None:
        what = "INFO is refused."
        to_do = "Look with another user, or allow it: ACL SETUSER … +info."
        return [note("info", what, "Version, role, memory and persistence cannot be looked at.", to_do)]
    found = [*judge_version(server.facts), *judge_role(server), *judge_memory(server, holds)]
    if KEEPS & {*holds}:
        found += judge_persistence(server)
    connected, most = server.number("connected_clients"), server.number("maxclients")
    if most and connected > BUSY * most:
        what = f"{connected:,} of {most:,} clients are connected."
        why = "The next ones would be refused."
        found.append(note("clients", what, why, "Raise maxclients, or find out who opens so many connections."))
    return found


def judge_version(facts: Mapping[str, Any]) -> list[Finding]:
    """Judge the program and its version. Valkey also reports the version of Redis that it is compatible with."""
    program = "Valkey" if "valkey_version" in facts else "Redis"
    version = str(facts.get("valkey_version") or facts.get("redis_version") or "0")
    least = VERSION_MIN[program]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < least:
        needs = f"usage-feeds needs {program} {'.'.join(map(str, least))} or newer."
        return [mend("version", f"This is {program} {version}.", needs, "Upgrade the server.")]
    return [fine("version", f"{program} {version}.")]


def judge_role(server: Server) -> list[Finding]:
    """Judge the server's role: it has to be a primary that takes writes, and no node of a cluster."""
    facts = server.facts
    if facts.get("cluster_enabled"):
        what = "This is a node of a Redis Cluster."
        why = "Keys of usage-feeds belong to many slots, and no client asks for them."
        return [mend("cluster", what, why, "Set the address of a single server.")]
    if facts.get("role") != "master":
        what = "This server is a replica."
        why = "It takes no writes, so events, messages and feeds are refused."
        return [
            mend("replica", what, why, "Set the address of the primary, or one that follows it through a failover.")
        ]
    good = facts.get("min_slaves_good_slaves")
    replicas = server.number("connected_slaves")
    if good == 0:
        what = "No replica is up to date, but min-replicas-to-write asks for one."
        why = "Writes are refused."
        return [mend("replica", what, why, "Start the replica, or set min-replicas-to-write 0.")]
    return [fine("replica", f"A primary with {replicas} replica{'' if replicas == 1 else 's'}.")]


def judge_memory(server: Server, holds: Collection[str]) -> list[Finding]:
    """Judge the limit of memory, and what happens when it is reached."""
    used, limit = server.number("used_memory"), server.number("maxmemory")
    policy = str(server.facts.get("maxmemory_policy", "unknown"))
    keeps = KEEPS & {*holds}
    if keeps and policy not in {"noeviction", "unknown"}:
        what = f"maxmemory-policy is {policy}."
        why = "Events and messages that wait may be evicted, and are then lost."
        to_do = "Set noeviction. If memory is short, give the feeds a Redis of their own (FEEDS_REDIS_URL)."
        return [mend("eviction", what, why, to_do)]
    if not limit:
        what = f"maxmemory is not set; {format_size(used)} are used."
        why = "Redis grows until the machine has no memory left, and is then killed."
        return [
            note(
                "memory", what, why, f"Set maxmemory, and maxmemory-policy {'noeviction' if keeps else 'allkeys-lru'}."
            )
        ]
    what = f"{used / limit:.0%} of {format_size(limit)} are used, {policy}."
    if keeps and used > FULL * limit:
        why = "When it is full, producers get an error."
        to_do = "Run `usage-feeds drain` if events wait, or raise maxmemory."
        return [note("memory", what, why, to_do)]
    if not keeps and policy == "noeviction":
        why = "When it is full, no new feed is cached, and its pages come from Postgres."
        return [note("eviction", what, why, "Set maxmemory-policy allkeys-lru: this Redis holds only cached feeds.")]
    return [fine("memory", what)]


def judge_persistence(server: Server) -> list[Finding]:
    """Judge whether events survive the death of Redis."""
    replicas = server.number("connected_slaves")
    found = []
    if not server.number("aof_enabled"):
        what = "The append-only file is off."
        to_do = "Set appendonly yes, and appendfsync everysec."
        if replicas:
            why = f"There is a replica ({replicas}), but if all of them stop, the events that wait are lost."
            found.append(note("append_only", what, why, to_do))
        else:
            found.append(mend("append_only", what, "If Redis stops, the events that wait are lost.", to_do))
    elif server.synced == "no":
        what = "appendfsync is no."
        why = "If the machine dies, the events of the last half minute may be lost."
        found.append(mend("append_only", what, why, "Set appendfsync everysec."))
    elif server.synced is None:
        what = "How often the append-only file is synced cannot be looked at: CONFIG GET is refused."
        why = "With appendfsync no, a dying machine loses half a minute of events."
        found.append(note("append_only", what, why, "Make sure that appendfsync is everysec or always."))
    else:
        found.append(fine("append_only", f"The append-only file is on, appendfsync {server.synced}."))
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if server.facts.get(name) == "err"]
    if failed:
        what = f"Redis could not write to its disk ({', '.join(failed)})."
        why = "Until it can, it refuses events."
        found.append(mend("disk", what, why, "Look at Redis's log and its disk's free space."))
    return found


def judge_address(address: RedisAddress) -> list[Finding]:
    """Judge whether others can read, or connect to, what an address leads to."""
    if address.path or is_this_machine(address.host):
        return []
    found = []
    if address.tls is None:
        what = "The connection is not encrypted."
        why = "Who can read the network reads events, and the password."
        found.append(note("encryption", what, why, "Use rediss://, if the network is not yours."))
    elif address.tls.get("ssl_cert_reqs") == "none":
        what = "The server's certificate is not checked."
        why = "Another machine can pretend to be the server."
        found.append(note("encryption", what, why, "Remove ssl_cert_reqs=none, and set ssl_ca_certs=FILE."))
    else:
        found.append(fine("encryption", "The connection is encrypted, and the server's certificate is checked."))
    if not address.password:
        what = "The address holds no password."
        why = "Everyone who reaches the port can read, add and delete events."
        found.append(note("password", what, why, "Set a password, or the users of deploy/redis.acl."))
    return found


def format_size(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**20:,.0f} MiB"
