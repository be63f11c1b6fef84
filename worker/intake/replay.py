"""How are dead letters posted again?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import Connection
from redis import Redis

from feeds.database import begin
from feeds.schema import Ledger
from worker.events import EventRefused, EventTooLarge
from worker.intake import counters
from worker.intake.batch import Publish
from worker.ledger.dead_letters import DeadLetter, discard_dead_letters, find_dead_letters
from worker.ledger.entries import Entry
from worker.ledger.write import post_entries

BATCH_MAX = 500


class Replayed(NamedTuple):
    """The ids of the dead letters that are posted now, and of those that were refused again, each with the reason."""

    posted: list[int]
    refused: dict[int, EventRefused]


def replay(
    connection: Connection[Any],
    streams: Redis,
    ledger: Ledger,
    dead_letter_ids: Sequence[int],
    publish: Publish,
) -> Replayed:
    """Post dead letters again as the entries that they were, oldest first; discard those that are posted.

    A dead letter is discarded last: if the process dies before, the replay can be repeated, and every ref is posted
    once.

    Args:
        connection: To Postgres, in no transaction.
        streams: The streams' Redis, which holds the counters.
        ledger: The facts of the ledger.
        dead_letter_ids: Which dead letters; ids that do not exist are ignored.
        publish: Puts movements into the cached feeds. It is told that the batch is a repeat, because the feeds may lack
            the movements of a first attempt that died.
    """
    outcome = Replayed([], {})
    ordered = sorted(set(dead_letter_ids))
    for start in range(0, len(ordered), BATCH_MAX):
        letters = find_dead_letters(connection, ordered[start : start + BATCH_MAX])
        refused = refuse_cut(letters)
        whole = {entry_of(letter): letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused}
        with begin(connection):
            posted = post_entries(connection, ledger, list(whole), again=True)
        publish(connection, posted, True)
        counters.note_batch(posted)
        refused |= {whole[refusal.entry]: refusal.reason for refusal in posted.refusals}
        done = [letter.dead_letter_id for letter in letters if letter.dead_letter_id not in refused]
        outcome.refused.update(refused)
        outcome.posted.extend(discard_dead_letters(connection, done))
    counters.flush(streams)
    return outcome


def entry_of(letter: DeadLetter) -> Entry:
    """Return the entry that a dead letter was, added at the same time by Postgres's clock."""
    entry = Entry(letter.stream, letter.entry_id, letter.raw)
    return entry._replace(clock_ahead=letter.added_at - entry.added_at)


def refuse_cut(letters: Sequence[DeadLetter]) -> dict[int, EventRefused]:
    """Return the dead letters that cannot be posted because only their beginning was kept, by id, and the reason."""
    reason = EventTooLarge("only its first 64 KiB were kept")
    return {letter.dead_letter_id: reason for letter in letters if letter.raw_bytes > len(letter.raw)}
