"""How is the address of Postgres parsed?"""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from feeds.addresses.text import ESCAPED, refuse, require_readable

EXAMPLE = "set one like postgresql://user@host:5432/database"


def place_of(url: str) -> str:
    """Return host, port and database of an address, without user and password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "an invalid address"
    return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def parse_postgres(text: str, variable: str = "DATABASE_URL") -> str:
    """Return an address that libpq reads as it is meant. The driver in `postgresql+psycopg://` is left out.

    libpq's own form without a scheme (`host=… dbname=…`) is returned as it is.

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
    return text
