"""How is the address of Postgres parsed?"""

from collections.abc import Mapping

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from feeds.addresses.text import ESCAPED, refuse, require_readable

EXAMPLE = "set one like postgresql://user@host:5432/database"
LISTS = ("host", "hostaddr", "port")
"""Parts of an address that may hold a value for each of several hosts."""
WRITABLE = {"primary", "read-write"}
"""The values of `target_session_attrs` that never lead to a standby."""


def place_of(url: str) -> str:
    """Return hosts, ports and database of an address, without user and password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "an invalid address"
    hosts, ports = str(parts.get("host") or "localhost").split(","), str(parts.get("port") or 5432).split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False))
    return f"{places}/{parts.get('dbname') or ''}"


def next_host_first(address: str) -> str:
    """Return an address with its first host moved to the end; one of a single host is returned as it is."""
    parts = conninfo_to_dict(address)
    lists = {name: str(parts[name]).split(",") for name in LISTS if "," in str(parts.get(name))}
    moved = {name: ",".join([*values[1:], values[0]]) for name, values in lists.items()}
    return make_conninfo(address, **moved) if moved else address


def parse_postgres(text: str, variable: str = "DATABASE_URL") -> str:
    """Return an address that libpq reads as it is meant. The driver in `postgresql+psycopg://` is left out.

    libpq's own form without a scheme (`host=… dbname=…`) is accepted too. An address of several hosts leads to the
    one that is the primary.

    Args:
        text: The address.
        variable: The setting that it comes from, for the error message.

    Raises:
        BadAddress: The message says what to do.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if separator and "=" not in scheme:
        rest = require_readable(text, variable).partition("://")[2]
        if scheme.lower().partition("+")[0] not in {"postgres", "postgresql"}:
            refuse(variable, EXAMPLE)
        text = f"postgresql://{rest}"
        if "@" in rest.partition("?")[0].partition("/")[2]:
            refuse(variable, f"there is an @ behind the first /: {ESCAPED}")
    try:
        parts = conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        refuse(variable, EXAMPLE)
    if any("@" in host for host in str(parts.get("host") or "").split(",") if not host.startswith("/")):
        refuse(variable, f"there is an @ in the host: {ESCAPED}")
    if not all(port.isdecimal() for port in str(parts.get("port") or "5432").split(",") if port):
        refuse(variable, f"the port is not a number: {ESCAPED}")
    return require_primary(text, parts, variable)


def require_primary(text: str, parts: Mapping[str, object], variable: str) -> str:
    """Return an address, with the option that finds the primary if there are several hosts.

    Raises BadAddress if an option leads to a standby.
    """
    has_several = any("," in str(parts.get(name)) for name in ("host", "hostaddr"))
    target = parts.get("target_session_attrs")
    if target is None:
        return make_conninfo(text, target_session_attrs="primary") if has_several else text
    if target not in WRITABLE and (has_several or target != "any"):
        refuse(variable, "its option `target_session_attrs` may lead to a standby: set primary, or read-write")
    return text
