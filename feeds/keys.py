"""What does an API key look like, and how are keys and members stored?"""

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import class_row
from typeid import TypeID
from uuid_utils.compat import uuid7

from feeds.database import READING, begin
from feeds.queries import load_queries

SQL = load_queries(__file__)

BASE62: LiteralString = string.digits + string.ascii_uppercase + string.ascii_lowercase
PREFIX = "ufk_"
RANDOM_CHARS = 30
"""178 random bits."""
CHECKSUM_CHARS = 6
SECRET_PATTERN = re.compile(f"{PREFIX}[0-9A-Za-z]{{{RANDOM_CHARS + CHECKSUM_CHARS}}}")
BILLING_READ = "billing:read"
RATE_MAX = 100_000
ROLES = ("owner", "admin", "billing", "member")
READING_ROLES = frozenset({"owner", "admin", "billing"})
"""The roles that grant `billing:read`."""


class Key(NamedTuple):
    """What is stored of a key, except its digest."""

    key_id: UUID
    org_id: str | None
    user_id: str | None
    permissions: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    rate: int | None


def new_secret() -> str:
    """Return a new secret: `ufk_`, 30 random characters, and 6 characters of checksum.

    By the checksum, scanners for leaked secrets tell keys from random text.
    """
    stem = PREFIX + "".join(secrets.choice(BASE62) for _ in range(RANDOM_CHARS))
    return stem + checksum(stem)


def checksum(stem: str) -> str:
    """Return the CRC-32 of the key's other characters in base 62."""
    rest, digits = zlib.crc32(stem.encode()), ""
    for _ in range(CHECKSUM_CHARS):
        rest, digit = divmod(rest, 62)
        digits = BASE62[digit] + digits
    return digits


def is_well_formed(secret: str) -> bool:
    """Return whether a text has the form and the checksum of a key. A mistyped key has not."""
    stem, check = secret[:-CHECKSUM_CHARS], secret[-CHECKSUM_CHARS:]
    return SECRET_PATTERN.fullmatch(secret) is not None and checksum(stem) == check


def digest_of(secret: str) -> bytes:
    """Return what is stored in place of a secret. It has so many random bits that a plain hash cannot be reversed."""
    return hashlib.sha256(secret.encode()).digest()


def format_key_id(key_id: UUID) -> str:
    """Return a key's TypeID: `key_` and 26 characters."""
    return str(TypeID.from_uuid(key_id, "key"))  # type: ignore[arg-type]  # its signature names uuid_utils' class only


def parse_key_id(text: str) -> UUID:
    """Return the UUID of a key's TypeID. Raises `ValueError`."""
    try:
        parsed = TypeID.from_string(text)
    except Exception as error:  # its exceptions have no common base except Exception
        raise ValueError(text) from error
    if parsed.prefix != "key":
        raise ValueError(text)
    return UUID(bytes=parsed.uuid.bytes)


def create_key(  # noqa: PLR0913 -- one parameter for each fact of a key
    connection: Connection[Any],
    *,
    org_id: str | None = None,
    user_id: str | None = None,
    permissions: Sequence[str] = (BILLING_READ,),
    expires_at: datetime | None = None,
    rate: int | None = None,
) -> tuple[Key, str]:
    """Create a key of an organisation or of a person. Return it and its secret.

    Args:
        connection: To the ledger's database.
        org_id: The organisation that the key reads; it is added if it is unknown.
        user_id: The person who owns the key. Exactly one of `org_id` and `user_id` is given.
        permissions: What the key allows.
        expires_at: When the key ends; None for never.
        rate: How many requests a second the key may make, from 1 to `RATE_MAX`; None for no limit.
    """
    secret = new_secret()
    parameters = {
        "key_id": uuid7(),
        "digest": digest_of(secret),
        "org_id": org_id,
        "user_id": user_id,
        "permissions": list(permissions),
        "expires_at": expires_at,
        "rate": rate,
    }
    with begin(connection), key_cursor(connection) as cursor:
        if org_id is not None:
            cursor.execute(SQL["insert_organisation"], {"org_id": org_id})
        key = cursor.execute(SQL["insert_key"], parameters).fetchone()
    if key is None:
        raise AssertionError("INSERT … RETURNING returns the row")
    return key, secret


def list_keys(connection: Connection[Any]) -> list[Key]:
    """Return all keys in the order in which they were created."""
    with begin(connection, READING), key_cursor(connection) as cursor:
        return cursor.execute(SQL["list_keys"]).fetchall()


def revoke_key(connection: Connection[Any], key_id: UUID) -> Key | None:
    """Revoke a key; every endpoint refuses it within 10 s. Return the key, or None if there is no such key."""
    with begin(connection), key_cursor(connection) as cursor:
        return cursor.execute(SQL["revoke_key"], {"key_id": key_id}).fetchone()


def set_member(connection: Connection[Any], org_id: str, user_id: str, role: str) -> None:
    """Give a person a role in an organisation, which is added if it is unknown."""
    with begin(connection), connection.cursor() as cursor:
        cursor.execute(SQL["insert_organisation"], {"org_id": org_id})
        cursor.execute(SQL["upsert_member"], {"org_id": org_id, "user_id": user_id, "role": role})


def remove_member(connection: Connection[Any], org_id: str, user_id: str) -> bool:
    """Remove a member. Return whether the person was a member."""
    with begin(connection), connection.cursor() as cursor:
        return cursor.execute(SQL["delete_member"], {"org_id": org_id, "user_id": user_id}).fetchone() is not None


def key_cursor(connection: Connection[Any]) -> Cursor[Key]:
    """Return a cursor whose rows are keys."""
    return connection.cursor(row_factory=class_row(Key))
