"""Which `up` holds the state folder, and which addresses does it store there?"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feeds.schema import UnusableSetup
from feeds.state import addresses_file
from worker.local import children
from worker.settings import worker_settings

STORED_SETTINGS = ("DATABASE_URL", "READER_DATABASE_URL", "REDIS_URL", "FEEDS_REDIS_URL", "CELERY_BROKER_URL")
LOCK_WITHIN_S = 8.0
"""When `up` is killed, its guard holds the lock until all of its children have ended."""


class StateInUse(UnusableSetup):
    """Another `up` runs from the same state folder. Stop it, or choose another folder."""


@contextmanager
def locked_state_folder(state: Path) -> Iterator[None]:
    """Make the state folder and hold its lock until our last child has ended. Raises StateInUse."""
    state.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    lock = os.open(state / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not children.wait_for(lambda: try_lock(lock, state), LOCK_WITHIN_S):
            raise StateInUse(f"The processes of a killed `up` in {state} are still ending: try again in a moment.")
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        children.pass_to_guard(lock)
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def try_lock(lock: int, state: Path) -> bool:
    """Take the lock. Return False if its owner has died but the owner's guard still holds it.

    Raises StateInUse if the owner is alive.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode()
        if owner and is_alive(int(owner)):
            raise StateInUse(
                f"Another `up` (process {owner}) runs from {state}: stop it, or choose another folder with --state."
            ) from None
        return False
    return True


def is_alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_stale_addresses() -> None:
    """Remove the addresses of a killed `up`, so that we do not connect to its servers."""
    addresses_file().unlink(missing_ok=True)
    worker_settings.cache_clear()


@contextmanager
def stored_addresses(endpoint_url: str) -> Iterator[None]:
    """Store our addresses in the state folder while the block runs, so that other commands find this `up`.

    Only our own account can read the file: it holds a password.
    """
    facts = worker_settings()
    addresses = {
        **{name.lower(): os.environ[name] for name in STORED_SETTINGS if os.environ.get(name)},
        "event_shards": facts.event_shards,
        "usage_kinds": ",".join(facts.usage_kinds),
        "expiry_grace_s": facts.expiry_grace_s,
        "endpoint_url": endpoint_url,
    }
    file = addresses_file()
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(addresses, indent=2) + "\n")
    unfinished.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
