"""Who uses the state folder, and what do others find there?"""

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

KEPT_SETTINGS = ("DATABASE_URL", "READER_DATABASE_URL", "REDIS_URL", "FEEDS_REDIS_URL", "CELERY_BROKER_URL")
LOCK_WITHIN_S = 8.0
"""A killed `up` leaves its lock to the guard until all of its children are gone."""


class StateInUse(UnusableSetup):
    """Another `up` runs from the same state folder. Stop it, or choose another."""


@contextmanager
def hold_state(state: Path) -> Iterator[None]:
    """Make the state folder and keep every other `up` out of it, until our last child is gone."""
    state.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    lock = os.open(state / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not children.wait_for(lambda: lock_or_refuse(lock, state), LOCK_WITHIN_S):
            raise StateInUse(f"What a killed `up` left in {state} is still ending: try again in a moment.")
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        children.have_guard_hold(lock)
        yield
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def lock_or_refuse(lock: int, state: Path) -> bool:
    """Take the lock; False while a dead process's children hold it, StateInUse while its holder lives."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode()
        if holder and is_alive(int(holder)):
            raise StateInUse(
                f"Another `up` (process {holder}) runs from {state}: stop it, or choose another folder by --state."
            ) from None
        return False
    return True


def is_alive(pid: int) -> bool:
    """Tell whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def forget_addresses() -> None:
    """Remove what a killed `up` left, lest we take its addresses for ours."""
    addresses_file().unlink(missing_ok=True)
    worker_settings.cache_clear()


@contextmanager
def published_addresses(endpoint_url: str) -> Iterator[None]:
    """Let other commands find all of this, as long as it runs. For our eyes alone: a password is in it."""
    facts = worker_settings()
    addresses = {
        **{name.lower(): os.environ[name] for name in KEPT_SETTINGS if os.environ.get(name)},
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
