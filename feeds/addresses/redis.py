"""How is the address of Redis parsed, and how do clients connect to it?

redis-py, Celery's transport and the endpoint's own client read a URL differently. In the URL of a Unix socket one finds
database 3 and another database 0. One checks the certificate of `rediss://`, another does not. An option of one is an
error of another. Here the URL is read once, and all clients get the same parts.

Producers run this, so it needs only the core dependencies.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feeds.addresses.options import complete_tls, read_options
from feeds.addresses.text import ESCAPED, BadAddress, refuse, require_readable

EXAMPLE = "set one like redis://host:6379/0"
SCHEMES = {"redis", "rediss", "unix", "redis+socket"}
"""The last one is Celery's name for a Unix socket."""
CHECK_WITHIN_S = 2.0


@dataclass(frozen=True)
class RedisAddress:
    """A Redis server, a database and a user.

    `path` is a Unix socket; then `host` and `port` mean nothing. `tls` is None without TLS, else redis-py's options.
    `limits` are the options for time limits, keepalive and the client's name: the streams' clients use them. All other
    clients have limits of their own.
    """

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)
    limits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Return the socket, or host and port."""
        return self.path or f"{self.host}:{self.port}"

    def pool(self, **options: Any) -> redis.ConnectionPool:
        """Return redis-py's pool. `options` are its other options."""
        user: dict[str, Any] = {"db": self.db, "username": self.username, "password": self.password}
        user["driver_info"] = None  # else each connection sends CLIENT SETINFO twice, which an ACL may refuse
        if self.path:
            return redis.ConnectionPool(redis.UnixDomainSocketConnection, path=self.path, **user, **options)
        kind = redis.Connection if self.tls is None else redis.SSLConnection
        return redis.ConnectionPool(kind, host=self.host, port=self.port, **user, **(self.tls or {}), **options)

    def tls_context(self) -> ssl.SSLContext | None:
        """Return what redis-py makes of `tls`. Raises OSError (or its ssl.SSLError) or ValueError for bad options."""
        if self.tls is None:
            return None
        given = {name.removeprefix("ssl_"): value for name, value in self.tls.items()}
        context = ssl.create_default_context()
        context.check_hostname = given["check_hostname"]
        context.verify_mode = ssl.VerifyMode[f"CERT_{given['cert_reqs'].upper()}"]
        for flag in given.get("include_verify_flags", ()):
            context.verify_flags |= flag
        for flag in given.get("exclude_verify_flags", ()):
            context.verify_flags &= ~flag
        if "certfile" in given or "keyfile" in given:
            context.load_cert_chain(given.get("certfile", ""), given.get("keyfile"), given.get("password"))
        authorities = (given.get("ca_certs"), given.get("ca_path"), given.get("ca_data"))
        if any(authorities):
            context.load_verify_locations(*authorities)
        if "min_version" in given:
            context.minimum_version = given["min_version"]
        if "ciphers" in given:
            context.set_ciphers(given["ciphers"])
        return context


def parse_redis(text: str, variable: str = "REDIS_URL") -> RedisAddress:
    """Return the parts of a Redis address: `redis://`, `rediss://` (TLS) or `unix://`.

    Args:
        text: The address.
        variable: The setting that it comes from, for the error message.

    Raises:
        BadAddress: The message says what to do.
    """
    text = require_readable(text, variable)
    scheme = require_scheme(text.partition("://")[0].lower() if "://" in text else "", variable)
    parts, port = split(text, variable)
    given = {name: values[0] for name, values in parse_qs(parts.query).items()}
    is_socket = scheme in {"unix", "redis+socket"}
    if is_socket and (parts.hostname or port or len(parts.path) < 2):
        refuse(variable, "the address of a Unix socket has three slashes, like unix:///run/redis.sock")
    db = [given.pop("db", ""), given.pop("virtual_host", "") if is_socket else parts.path.strip("/"), "0"]
    limits, tls = read_options(given, variable, is_socket=is_socket)
    if tls and scheme != "rediss":
        refuse(variable, "it has TLS options: write rediss:// in place of redis://")
    address = RedisAddress(
        host=unquote(parts.hostname or "localhost"),
        port=port or 6379,
        path=unquote(parts.path) if is_socket else "",
        db=read_db(next(filter(None, db)), variable),
        username=unquote(parts.username or "") or None,
        password=unquote(parts.password or "") or None,
        tls=complete_tls(tls) if scheme == "rediss" else None,
        limits=limits,
    )
    try:
        address.tls_context()
    except (OSError, ValueError) as error:
        refuse(variable, f"its TLS options cannot be used ({describe(error)}): check the certificate files")
    return address


def require_scheme(scheme: str, variable: str) -> str:
    """Return the scheme. Raises BadAddress if it is not one that we support."""
    if "sentinel" in scheme:
        refuse(variable, "Redis Sentinel is not supported: set the address of the master, or of a proxy before it")
    if "cluster" in scheme:
        refuse(variable, "Redis Cluster is not supported: set the address of a single server")
    if scheme not in SCHEMES:
        refuse(variable, EXAMPLE)
    return scheme


def split(text: str, variable: str) -> tuple[SplitResult, int | None]:
    """Return a URL's parts, and its port. Raises BadAddress if a character in it should have been escaped."""
    if "#" in text:
        refuse(variable, f"it holds a #: {ESCAPED}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its message may repeat a part of the password
        refuse(variable, f"host or port cannot be read: {ESCAPED}")
    if "@" in parts.path + parts.query:
        refuse(variable, f"there is an @ behind the first / or ?: {ESCAPED}")
    if "," in (parts.hostname or ""):
        refuse(variable, "it names more than one server: set one")
    return parts, port


def read_db(text: str, variable: str) -> int:
    """Return a database number. Raises BadAddress."""
    if not (text.isascii() and text.isdecimal()):
        refuse(variable, "the part behind the host is not a database number: write one like redis://host:6379/0")
    return int(text)


def describe(error: Exception) -> str:
    """Return what the operating system or OpenSSL reported, without anything from the address."""
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "reason", None) or "OpenSSL refuses them")
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def refuse_cluster(address: RedisAddress, variable: str) -> None:
    """Raise BadAddress if the server is a node of a Redis Cluster. A server that does not answer is not refused.

    Args:
        address: The server's address.
        variable: The setting that it comes from, for the error message.
    """
    limits = {"socket_timeout": CHECK_WITHIN_S, "socket_connect_timeout": CHECK_WITHIN_S}
    try:
        with redis.Redis.from_pool(address.pool(**limits, protocol=2, retry=Retry(NoBackoff(), 0))) as client:
            facts = client.info("cluster")
    except redis.RedisError:
        return
    if facts.get("cluster_enabled"):
        raise cluster_refused(variable)


def cluster_refused(variable: str) -> BadAddress:
    """Return the error for an address that leads to a node of a Redis Cluster."""
    return BadAddress(
        f"{variable} leads to a node of a Redis Cluster, which is not supported: set the address of a single server."
    )
