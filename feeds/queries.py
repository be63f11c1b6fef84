"""Which SQL stands beside a module?"""

import re
from pathlib import Path


def load_queries(module_file: str) -> dict[str, bytes]:
    """Return the queries of the `.sql` file of the same stem, by the name in their `-- name:` line."""
    text = Path(module_file).with_suffix(".sql").read_text()
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: query.strip().encode() for name, query in zip(parts[1::2], parts[2::2], strict=True)}
