"""Where does a running `up` store its addresses?"""

import json
import os
from pathlib import Path


def state_dir() -> Path:
    """Return the state folder: `USAGE_FEEDS_STATE`, else `.usage-feeds` in the current folder."""
    return Path(os.environ.get("USAGE_FEEDS_STATE") or ".usage-feeds").absolute()


def addresses_file() -> Path:
    """Return the JSON file with the settings of a running `up`: names in lower case, with their values."""
    return state_dir() / "addresses.json"


def read_addresses() -> dict[str, str]:
    """Return the settings that a running `up` stored; an empty dictionary if none runs."""
    try:
        addresses = json.loads(addresses_file().read_text())
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in addresses.items()}
