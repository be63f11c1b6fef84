"""How are the lines of a file brought into the order of their organisations, in little memory?

They go through a temporary SQLite database, which sorts them on disk. It has no name, so nothing is left of it when
the process ends in any way. SQLite puts it into the folder SQLITE_TMPDIR or TMPDIR, and it may get as large as the
file, twice.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from worker.events import OrgId

CACHE_KB = 64_000
ORG_ID: TypeAdapter[str] = TypeAdapter(OrgId)

NumberedLine = tuple[int, bytes]
OwnedLine = tuple[str, int, bytes]
"""The organisation of a line, the line's number in the file, and its bytes."""


class Owner(BaseModel):
    """The part of a line that says whose it is."""

    model_config = ConfigDict(strict=True)

    org_id: OrgId


@contextmanager
def open_sorter() -> Iterator[sqlite3.Connection]:
    """Give an empty temporary database. It raises sqlite3.Error, for instance if the disk is full."""
    with closing(sqlite3.connect("", isolation_level=None)) as sorter:
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KB}", "temp_store = FILE"):
            sorter.execute(f"PRAGMA {setting}")
        sorter.execute("CREATE TABLE lines (org_id TEXT, number INTEGER, raw BLOB)")
        yield sorter


def add_lines(sorter: sqlite3.Connection, lines: Iterable[NumberedLine]) -> list[NumberedLine]:
    """Add lines, each for the organisation that it names. Returns the lines that name none."""
    owned: list[OwnedLine] = []
    unowned: list[NumberedLine] = []
    for number, raw in lines:
        org_ids = find_org_ids(raw)
        owned += [(org_id, number, raw) for org_id in org_ids]
        if not org_ids:
            unowned.append((number, raw))
    sorter.execute("BEGIN")
    sorter.executemany("INSERT INTO lines VALUES (?, ?, ?)", owned)
    sorter.execute("COMMIT")
    return unowned


def read_sorted(sorter: sqlite3.Connection) -> Iterator[OwnedLine]:
    """Yield all lines: one organisation after the other, and its lines in the order of the file."""
    yield from sorter.execute("SELECT org_id, number, raw FROM lines ORDER BY org_id, number")


def find_org_ids(raw: bytes) -> Sequence[str]:
    """Return the organisations that a line names: one, if the line is good."""
    if raw.count(b'"org_id"') == 1 and b"\\" not in raw:
        try:
            return (Owner.model_validate_json(raw).org_id,)
        except ValidationError:
            return ()
    return list_org_ids(raw)


def list_org_ids(raw: bytes) -> Sequence[str]:
    """Return the organisations that a line names, also if it names several or writes the field with escapes."""
    try:
        pairs = json.loads(raw, object_pairs_hook=list)
        named = [value for name, value in pairs if name == "org_id"]
        return tuple(dict.fromkeys(ORG_ID.validate_python(value, strict=True) for value in named))
    except (ValueError, TypeError, RecursionError):
        return ()
