"""Whose fault is it that a batch could not be posted: an event's, or that of its surroundings?

An error of the surroundings is raised: nothing is buried, and the batch is tried again later. Behind every other error
there may be an event that must be found and buried. But the set-up may be the cause of such an error too: with the
setting array_nulls = off every event looked like a bad one. So before any event is buried, sound events are posted for
trial. If they fail as well, no event is at fault.
"""

import json
import secrets
from types import MappingProxyType

import psycopg
from billiard.exceptions import SoftTimeLimitExceeded

from feeds.schema import Ledger, UnusableSetup
from worker.ledger.entries import Entry

EVENT_CLASSES = MappingProxyType(
    {
        "09": "triggered action exception: a trigger of the host refused a row",
        "20": "case not found: as above, inside a function of the host",
        "21": "cardinality violation: a statement met the same row twice",
        "22": "data exception: a value has no place in its type or encoding",
        "23": "integrity constraint violation: a row breaks a rule of ours or of the host",
        "27": "triggered data change violation: a trigger of the host changed the row as well",
        "2F": "SQL routine exception: raised by a function of the host",
        "38": "external routine exception: as above",
        "39": "external routine invocation exception: as above",
        "44": "WITH CHECK OPTION violation: a view of the host refused a row",
        "54": "program limit exceeded: a value is too large for an index, or a statement too complex",
        "P0": "PL/pgSQL error: a trigger of the host raised an exception",
        "XX": "internal error: a bug that one row may trigger; XX001 and XX002, damaged data, are below",
    }
)
"""Classes of SQLSTATE with which Postgres may refuse one event and accept others, each with the reason."""

SURROUNDING_CLASSES = MappingProxyType(
    {
        "00": "successful completion: no error",
        "01": "warning: no error",
        "02": "no data: no error",
        "03": "statement not yet complete: the protocol or a pooler",
        "08": "connection exception",
        "0A": "feature not supported: another engine, an extension, or a standby that was asked to write",
        "0B": "invalid transaction initiation: a pooler",
        "0F": "locator exception: not used",
        "0L": "invalid grantor: rights",
        "0P": "invalid role specification: rights",
        "0Z": "diagnostics exception: a function of the host",
        "10": "XQuery error: not used",
        "24": "invalid cursor state: a pooler",
        "25": "invalid transaction state: a read-only server, or a transaction that lasted too long",
        "26": "invalid statement name: a pooler",
        "28": "invalid authorization: password, certificate or pg_hba.conf",
        "2B": "dependent privileges still exist: rights",
        "2D": "invalid transaction termination: a function of the host",
        "34": "invalid cursor name: a pooler",
        "3B": "savepoint exception: a pooler, or an engine without savepoints",
        "3D": "invalid database name",
        "3F": "invalid schema name",
        "40": "transaction rollback: a deadlock or a serialisation failure; the next try succeeds",
        "42": "syntax error or access rule violation: rights, or another schema than this program's",
        "53": "insufficient resources: disk, memory, connections",
        "55": "object not in prerequisite state: a lock that was not granted in time",
        "57": "operator intervention: a shutdown, a timeout",
        "58": "system error: input and output",
        "72": "snapshot failure: removed in PostgreSQL 17",
        "F0": "configuration file error",
        "HV": "foreign data wrapper error: a foreign server",
    }
)
"""All other classes of PostgreSQL's appendix on error codes. They blame the server, the connection or the set-up.

Unknown classes, of another engine, count among them.
"""

DAMAGED_DATA = frozenset({"XX001", "XX002"})
PASSED_ON = (SoftTimeLimitExceeded, MemoryError, OSError, UnusableSetup)
"""Errors of this program that no event causes: the process is too slow, too large, or cut off."""


class PostingFails(UnusableSetup):
    """Sound events fail too, so no event is at fault: nothing is buried or lost. Mend what the message names."""

    def __init__(self, error: Exception) -> None:
        self.problem = f"sound events fail too: {describe(error)}"
        super().__init__(
            f"Nothing can be posted, and nothing is lost: {self.problem}:"
            " mend the database, its settings or this program."
        )


def may_be_an_events(error: Exception) -> bool:
    """Tell whether an event may be the cause of an error, so that a batch without it would be posted."""
    if not isinstance(error, psycopg.Error):
        return not isinstance(error, PASSED_ON)
    if error.sqlstate:
        return error.sqlstate[:2] in EVENT_CLASSES and error.sqlstate not in DAMAGED_DATA
    return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def describe(error: Exception) -> str:
    """Return what an error says, in one line that any database can store."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    line = (text or str(error)).strip().partition("\n")[0][:300].encode(errors="backslashreplace").decode()
    code = f" (SQLSTATE {error.sqlstate})" if isinstance(error, psycopg.Error) and error.sqlstate else ""
    return f"{type(error).__name__}{code}: {line}".replace("\0", "\\0").removesuffix(": ")


def make_trial(ledger: Ledger) -> list[Entry]:
    """Return sound events of a new organisation. Posting them runs every statement, with and without NULLs."""
    org_id = f"trial:{secrets.token_hex(8)}"
    grant = {"type": "grant", "org_id": org_id, "source": "plan", "credits": 2}
    events: list[dict[str, object]] = [
        grant | {"grant_ref": "g1", "expires_at": "8999-01-01T00:00:00Z"},
        grant | {"grant_ref": "g2", "effective_at": "8998-01-01T00:00:00Z"},
        {"type": "usage", "org_id": org_id, "usage_ref": "u", "usage_kind": ledger.usage_kinds[0], "credits": 3},
        {"type": "revoke", "org_id": org_id, "grant_ref": "g2", "reason": "trial"},
    ]
    return [Entry("trial", f"1-{number}", json.dumps(event).encode()) for number, event in enumerate(events)]
