"""How fast are events posted, against peers in the same run?

Ours and the peers in turn, A B C A B C …, so that a machine that slows down slows all of them.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.bench.ground import Ground, cleared, migrated
from tests.bench.ours import Ours, grant_all
from tests.bench.race import Contender, Run, run
from tests.bench.sizes import Sizes, measure_sizes
from tests.bench.writing_peers import writing_peers

SPREAD = "usage-feeds, 1,000 organisations"
HOT = "usage-feeds, one organisation"
WIDE = "usage-feeds, 100,000 organisations"
WARM = "usage-feeds, 1,000 organisations, all feeds being read"


def our_contenders(share: float) -> list[Ours]:
    """Return ours, with `share` of the usual number of organisations and enough events for the clock to see."""
    events = int(60_000 * max(share, 0.3))
    return [
        Ours(SPREAD, 1000, events),
        Ours(HOT, 1, events),
        Ours(WIDE, int(100_000 * share), events),
        Ours(WARM, int(1000 * share), int(events / 1.5), warm=True),
    ]


@contextmanager
def ledgers(ground: Ground, ours: list[Ours]) -> Iterator[dict[int, str]]:
    """Give, for each number of organisations, the name of a database in which each has its grant."""
    with ExitStack() as stack:
        made = {}
        for number in {contender.organisations for contender in ours}:
            ledger = stack.enter_context(migrated(ground))
            grant_all(ledger, number)
            made[number] = ledger.database
        yield made


def race(ground: Ground, rounds: int, share: float, say: Any) -> tuple[dict[str, list[Run]], dict[str, Sizes]]:
    """Run all rounds; return each contender's, and the sizes of our ledgers after the last. `say` tells of each."""
    ours = our_contenders(share)
    peers: list[Contender] = writing_peers(ground) if share == 1 else []
    runs, sizes = defaultdict(list), {}
    with ledgers(ground, ours) as made:
        for number in range(1, rounds + 1):
            for contender in [*ours, *peers]:
                template = made[contender.organisations] if isinstance(contender, Ours) else "template0"
                with cleared(ground, template) as its_own:
                    done = run(contender, its_own)
                    runs[contender.name].append(done)
                    if isinstance(contender, Ours) and number == rounds:
                        sizes[contender.name] = measure_sizes(its_own)
                say(
                    f"round {number}: {contender.name}: {done.rate:,.0f}/s, {done.own_cpu_us + done.server_cpu_us:,.0f} µs"
                )
    return dict(runs), sizes
