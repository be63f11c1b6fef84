"""Where does a running `up` keep its addresses?"""

import os
from pathlib import Path


def state_dir() -> Path:
    """Return the state folder: `USAGE_FEEDS_STATE`, else `.usage-feeds` in the current folder."""
    return Path(os.environ.get("USAGE_FEEDS_STATE") or ".usage-feeds").absolute()


def addresses_file() -> Path:
    """Return the JSON file with the addresses of a running `up`: setting names, lower case, to values."""
    return state_dir() / "addresses.json"
