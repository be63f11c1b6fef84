"""Which texts are an organisation's id, a user's id, a ref and a usage kind?

Pure, and without imports: producers load it with the core dependencies only. The database checks `org_id`, `user_id`
and `usage_kind` against the same patterns: worker/migrations/0001_create_ledger.sql.
"""

ORG_ID_PATTERN = "[A-Za-z0-9_.:-]{1,64}"
USER_ID_PATTERN = "[A-Za-z0-9_.:@+-]{1,128}"
REF_PATTERN = "[A-Za-z0-9_.:-]{1,128}"
USAGE_KIND_PATTERN = "[a-z][a-z0-9_]{0,63}"
"""None of the patterns is anchored: match the whole text."""
USAGE_KINDS_DEFAULT = ("ai_usage", "tm_usage")
"""The usage kinds of a ledger, unless USAGE_KINDS names others."""


def split_usage_kinds(text: str) -> tuple[str, ...]:
    """Return the usage kinds of a comma-separated list, each once, without the blanks around them."""
    return tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
