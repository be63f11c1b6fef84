"""How are dead letters posted again?"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from psycopg import Connection

from feeds.schema import Ledger
from worker.events import EventRefused, EventTooLarge
from worker.intake.batch import Publish
from worker.ledger.dead_letters import DeadLetter, discard_dead_letters, find_dead_letters
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries

REPLAYED_AT_ONCE = 500


class Replayed(NamedTuple):
    """The ids of those that are posted now, and of those that were refused again, each with the reason."""

    posted: list[int]
    refused: dict[int, EventRefused]


def replay(
    connection: Connection[Any],
    ledger: Ledger,
    dead_letter_ids: Sequence[int],
    publish: Publish,
) -> Replayed:
    """Post dead letters again, oldest first, as the entries that they were; those posted are dead letters no more.

    They are forgotten last: who dies before can do it again, and every ref is posted once. `publish` is
    told that feeds may lack earlier lines, as those of a first, dead attempt.
    """
    outcome = Replayed([], {})
    ordered = sorted(set(dead_letter_ids))
    for start in range(0, len(ordered), REPLAYED_AT_ONCE):
        letters = find_dead_letters(connection, ordered[start : start + REPLAYED_AT_ONCE])
        refused = {letter.dead_letter_id: too_large() for letter in letters if letter.raw_bytes > len(letter.raw)}
        whole = {entry_of(letter): letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused}
        with connection.transaction():
            posted = post_entries(connection, ledger, list(whole), again=True)
        publish(connection, posted, True)
        refused |= {whole[refusal.entry]: refusal.reason for refusal in posted.refusals}
        outcome.refused.update(refused)
        outcome.posted.extend(discard_dead_letters(connection, unrefused(letters, refused)))
    return outcome


def entry_of(letter: DeadLetter) -> Entry:
    """Return the entry that a dead letter was."""
    return Entry(letter.stream, letter.entry_id, letter.raw)


def too_large() -> EventRefused:
    """Say why an event of which only the beginning was kept cannot be posted."""
    return EventTooLarge("only its first 64 KiB were kept")


def unrefused(letters: Iterable[DeadLetter], refused: dict[int, EventRefused]) -> list[int]:
    """Return the ids of the others."""
    return [letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused]
