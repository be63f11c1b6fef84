"""Which options of a Redis URL do our clients know?"""

import math
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from redis.connection import parse_ssl_verify_flags, to_bool

from feeds.addresses.text import refuse

TIME_LIMIT_MAX_S = 30.0


def read_options(given: Mapping[str, str], variable: str, *, is_socket: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options for `limits`, and those for TLS. Raises BadAddress for an unknown option or a bad value."""
    limits: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    for name, text in given.items():
        if name in LEFT_OUT or (is_socket and name == "socket_keepalive"):
            continue
        read = LIMITS.get(name) or TLS.get(name)
        if read is None or (is_socket and name in TLS):
            shown = f"`{name}` " if re.fullmatch("[a-z_]{1,40}", name) else ""
            refuse(variable, f"it has an option {shown}that no client knows: remove it")
        try:
            (limits if name in LIMITS else tls)[name] = read(text)
        except ValueError:
            refuse(variable, f"its option `{name}` has a value that cannot be used")
    return limits, tls


def complete_tls(tls: Mapping[str, Any]) -> dict[str, Any]:
    """Return options for TLS that say whether certificate and host are checked. By default both are."""
    requirement = tls.get("ssl_cert_reqs", "required")
    is_host_checked = requirement != "none" and tls.get("ssl_check_hostname", True)
    return {**tls, "ssl_cert_reqs": requirement, "ssl_check_hostname": is_host_checked}


def read_seconds(text: str) -> float:
    """Return a time limit. Raises ValueError unless it is above 0 and at most TIME_LIMIT_MAX_S."""
    seconds = float(text)
    if not 0 < seconds <= TIME_LIMIT_MAX_S:
        raise ValueError(text)
    return seconds


def read_interval(text: str) -> float:
    """Return seconds from 0. Raises ValueError."""
    seconds = float(text)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(text)
    return seconds


def read_requirement(text: str) -> str:
    """Return whether the server's certificate is checked, as redis-py spells it. Raises ValueError."""
    word = text.lower().removeprefix("cert_")
    if word not in {"none", "optional", "required"}:
        raise ValueError(text)
    return word


def read_switch(text: str) -> bool:
    """Return what redis-py makes of a switch's text."""
    return bool(to_bool(text))  # type: ignore[no-untyped-call]


LIMITS: Mapping[str, Callable[[str], Any]] = {
    "socket_timeout": read_seconds,
    "socket_connect_timeout": read_seconds,
    "socket_keepalive": read_switch,
    "health_check_interval": read_interval,
    "client_name": str,
}
TLS: Mapping[str, Callable[[str], Any]] = {
    "ssl_keyfile": str,
    "ssl_certfile": str,
    "ssl_password": str,
    "ssl_cert_reqs": read_requirement,
    "ssl_check_hostname": read_switch,
    "ssl_ca_certs": str,
    "ssl_ca_path": str,
    "ssl_ca_data": str,
    "ssl_include_verify_flags": parse_ssl_verify_flags,
    "ssl_exclude_verify_flags": parse_ssl_verify_flags,
    "ssl_min_version": lambda text: ssl.TLSVersion(int(text)),
    "ssl_ciphers": str,
}
LEFT_OUT = {
    "protocol", "legacy_responses", "decode_responses", "encoding", "encoding_errors",
    "retry_on_timeout", "retry_on_error", "max_connections", "timeout", "socket_read_size",
}  # fmt: skip
"""redis-py's options for how replies are decoded and when it sends again: our clients depend on their own."""
