"""Which SQL queries does a module have? They are in the `.sql` file beside it."""

import re
from pathlib import Path


def load_queries(module_file: str) -> dict[str, bytes]:
    """Return the queries of the `.sql` file with the module's stem, by the names in their `-- name:` lines."""
    text = Path(module_file).with_suffix(".sql").read_text()
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: query.strip().encode() for name, query in zip(parts[1::2], parts[2::2], strict=True)}
