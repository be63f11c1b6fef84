"""Is Postgres set up so that the ledger is safe?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from psycopg import Connection, errors
from psycopg.rows import tuple_row

from feeds.database import READING, begin
from feeds.queries import load_queries
from worker.doctor.finding import Finding, fine, list_names, mend, note
from worker.doctor.machine import is_this_machine

SQL = load_queries(__file__)

VERSION_MIN = 15
BUSY = 0.8
"""Above this part of its connections Postgres gets a remark."""
USUAL = {
    "application_name", "idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout",
    "statement_timeout", "synchronous_commit", "transaction_timeout",
}  # fmt: skip
"""Settings of a role or database that deserve no remark: each of our transactions has its own values."""


class Server(NamedTuple):
    """What Postgres reports about itself. `settings` are those of the role and of the database."""

    version: int
    encoding: str
    is_standby: bool
    is_synced: bool
    has_full_pages: bool
    is_vacuumed: bool
    connections: int
    connections_max: int
    shared_memory_type: str
    process_id: int
    settings: Mapping[str, str]


class Link(NamedTuple):
    """How a connection is protected. `mode` is libpq's `sslmode`."""

    host: str
    is_encrypted: bool
    mode: str


def read_server(connection: Connection[Any]) -> Server:
    """Return what Postgres reports about itself."""
    with begin(connection, READING), connection.cursor(row_factory=tuple_row) as cursor:
        [row] = cursor.execute(SQL["read_server"]).fetchall()
        settings: dict[str, str] = dict(cursor.execute(SQL["read_settings"]).fetchall())
    return Server._make((*row, settings))


def read_link(connection: Connection[Any]) -> Link:
    """Return how a connection is protected."""
    mode = connection.info.get_parameters().get("sslmode", "prefer")
    return Link(connection.info.host, bool(connection.pgconn.ssl_in_use), mode)


def judge_server(server: Server) -> list[Finding]:
    """Judge the server and the database."""
    major = server.version // 10000
    found = []
    if major < VERSION_MIN:
        found.append(
            mend("version", f"This is PostgreSQL {major}.", f"usage-feeds needs {VERSION_MIN}.", "Upgrade the server.")
        )
    else:
        number = f"{major}.{server.version % 10000}"
        found.append(fine("version", f"PostgreSQL {number}, database in {server.encoding}."))
    if server.is_standby:
        found.append(
            mend(
                "standby",
                "This server is a standby: it only reads.",
                "Nothing can be posted, and its pages would lag.",
                "Set the address of the primary.",
            )
        )
    return [*found, *judge_durability(server), *judge_connections(server), *judge_settings(server.settings)]


def judge_durability(server: Server) -> list[Finding]:
    """Judge whether committed movements survive a crash."""
    why = "If the machine crashes, committed movements may be lost or damaged: their events are deleted already."
    lost = {"fsync": server.is_synced, "full_page_writes": server.has_full_pages}
    found = [
        mend(name, f"{name} is off.", why, f"Set {name} = on in postgresql.conf, and reload Postgres.")
        for name, is_on in lost.items()
        if not is_on
    ]
    if not server.is_vacuumed:
        what = "autovacuum is off."
        to_do = "Set autovacuum = on in postgresql.conf, and reload Postgres."
        found.append(note("autovacuum", what, "Every batch leaves dead rows; nothing would clear them away.", to_do))
    return found


def judge_connections(server: Server) -> list[Finding]:
    """Judge how many connections are left."""
    what = f"{server.connections:,} of {server.connections_max:,} connections are in use."
    if server.connections < BUSY * server.connections_max:
        return [fine("connections", what)]
    why = "A pool process takes one, the schedule none, an endpoint up to nine; without one it has to wait."
    return [note("connections", what, why, "Raise max_connections, or put PgBouncer in transaction mode in front.")]


def judge_settings(settings: Mapping[str, str]) -> list[Finding]:
    """Name the unusual settings of role and database. Of custom ones only the names: their values may be secrets."""
    unusual = [
        name if "." in name else f"{name} = {value}"
        for name, value in sorted(settings.items())
        if name not in USUAL and not name.startswith(("log_", "auto_explain."))
    ]
    if not unusual:
        return []
    return [
        note(
            "settings",
            f"Role or database have settings of their own: {list_names(unusual)}.",
            "Each transaction of usage-feeds sets what it depends on, but psql and other programs see these.",
            "Nothing, as long as they are meant.",
        )
    ]


def explain_cancel(error: Exception) -> Finding | None:
    """Return what is wrong if Postgres cancelled even the first statement, None for any other error."""
    if not isinstance(error, errors.QueryCanceled):
        return None
    return mend(
        "statement_timeout",
        "Postgres cancels a statement before it has begun to work.",
        "Every transaction sets time limits of its own, but its first statement has the limit of role or database.",
        "Raise statement_timeout to a second or more: ALTER ROLE … SET, or ALTER DATABASE … SET.",
    )


def judge_link(link: Link) -> list[Finding]:
    """Judge whether others can read or change what is sent to Postgres."""
    if is_this_machine(link.host):
        return []
    if not link.is_encrypted:
        what = "The connection is not encrypted."
        why = "Who can read the network reads the credits of all organisations."
        return [note("encryption", what, why, "Add `sslmode=verify-full` to the address, if the network is not yours.")]
    if link.mode not in {"verify-ca", "verify-full"}:
        what = f"The connection is encrypted, but the server's certificate is not checked (sslmode={link.mode})."
        why = "Another machine can pretend to be the server."
        return [note("encryption", what, why, "Add `sslmode=verify-full` and `sslrootcert=FILE` to the address.")]
    return [fine("encryption", "The connection is encrypted, and the server's certificate is checked.")]
