"""How is the address of Celery's broker parsed? It is Redis or RabbitMQ."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from feeds.addresses.options import read_requirement, read_switch
from feeds.addresses.redis import EXAMPLE, SCHEMES, RedisAddress, parse_redis, split
from feeds.addresses.text import refuse, require_readable

RABBITMQ = {"amqp", "amqps", "pyamqp"}
LEFT_OUT = {"heartbeat", "connect_timeout", "connection_timeout"}
"""Options for which our clients have values of their own."""
TLS = {"ssl_ca_certs": "ca_certs", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile"}


@dataclass(frozen=True)
class RabbitAddress:
    """RabbitMQ: one URL for each node, without options. `tls` is None without TLS, else the options of py-amqp."""

    urls: tuple[str, ...] = field(repr=False)
    tls: Mapping[str, Any] | None = field(default=None, repr=False)


def parse_broker(text: str, variable: str = "CELERY_BROKER_URL") -> RedisAddress | RabbitAddress:
    """Return the parts of a broker's address: that of Redis, or `amqp://` or `amqps://` (TLS) for RabbitMQ.

    Several nodes of RabbitMQ are separated by `;`.

    Args:
        text: The address.
        variable: The setting that it comes from, for the error message.

    Raises:
        BadAddress: The message says what to do.
    """
    text = require_readable(text, variable)
    scheme = text.partition("://")[0].lower()
    if scheme in RABBITMQ:
        return parse_rabbitmq(text, scheme, variable)
    if scheme not in SCHEMES and "sentinel" not in scheme and "cluster" not in scheme:
        refuse(variable, f"{EXAMPLE} or amqp://user@host:5672//")
    return parse_redis(text, variable)


def parse_rabbitmq(text: str, scheme: str, variable: str) -> RabbitAddress:
    """Return the parts of RabbitMQ's address, whose first node has this scheme. Raises BadAddress."""
    urls, hosts = [], []
    given: dict[str, str] = {}
    for node in text.split(";"):
        if node.partition("://")[0].lower() != scheme:
            refuse(variable, "its nodes do not all begin alike: begin each with amqp:// or each with amqps://")
        parts, _ = split(node, variable)
        given |= {name: values[0] for name, values in parse_qs(parts.query).items()}
        urls.append(f"{scheme}://{parts.netloc}{parts.path}")
        hosts.append(parts.hostname or "localhost")
    tls = read_tls(given, scheme, variable)
    if tls and tls.pop("check_hostname"):
        if len(hosts) > 1:  # py-amqp takes one name for all
            refuse(variable, "TLS with several nodes needs ssl_check_hostname=false: add it, or set one node")
        tls["server_hostname"] = hosts[0]
    return RabbitAddress(tuple(urls), tls)


def read_tls(given: Mapping[str, str], scheme: str, variable: str) -> dict[str, Any] | None:
    """Return py-amqp's TLS options, and whether to check the host; None without TLS. Raises BadAddress.

    Args:
        given: The options of the URL.
        scheme: Whether TLS is used.
        variable: The setting that the address comes from.
    """
    options = {name: text for name, text in given.items() if name not in LEFT_OUT}
    if options.keys() - {*TLS, "ssl_cert_reqs", "ssl_check_hostname"}:
        refuse(variable, "it has an option that no client knows: remove it")
    if scheme != "amqps":
        if options:
            refuse(variable, "it has TLS options: write amqps:// in place of amqp://")
        return None
    try:
        requirement = read_requirement(options.get("ssl_cert_reqs", "required"))
    except ValueError:
        refuse(variable, "its option `ssl_cert_reqs` has a value that cannot be used")
    tls: dict[str, Any] = {TLS[name]: text for name, text in options.items() if name in TLS}
    tls["cert_reqs"] = ssl.VerifyMode[f"CERT_{requirement.upper()}"]
    tls["check_hostname"] = requirement != "none" and read_switch(options.get("ssl_check_hostname", "true"))
    return tls
