"""How fast are events posted? Compared with peers in the same run.

Ours and the peers are measured in turn, A B C A B C …: if the machine becomes slower, it becomes slower for all.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.backlog import Contender, Run, run
from tests.bench.figures import Report
from tests.bench.servers import Servers, migrated_database, new_database
from tests.bench.sizes import Sizes, measure_sizes
from tests.bench.usage_feeds import UsageFeeds, grant_all
from tests.bench.writing_peers import writing_peers

SPREAD = "usage-feeds, 1,000 organisations"
HOT = "usage-feeds, one organisation"
WIDE = "usage-feeds, 100,000 organisations"
WARM = "usage-feeds, 1,000 organisations, all feeds being read"


def our_contenders(share: float) -> list[UsageFeeds]:
    """Return ours: `share` of the usual number of organisations, and enough events to measure."""
    events = int(60_000 * max(share, 0.3))
    return [
        UsageFeeds(SPREAD, 1000, events),
        UsageFeeds(HOT, 1, events),
        UsageFeeds(WIDE, int(100_000 * share), events),
        UsageFeeds(WARM, int(1000 * share), int(events / 1.5), warm=True),
    ]


@contextmanager
def ledgers(servers: Servers, ours: list[UsageFeeds]) -> Iterator[dict[int, str]]:
    """Give the name of a database for each number of organisations. In it, every organisation has its grant."""
    with ExitStack() as stack:
        databases = {}
        for number in {contender.organisations for contender in ours}:
            ledger = stack.enter_context(migrated_database(servers))
            grant_all(ledger, number)
            databases[number] = ledger.database
        yield databases


def run_rounds(
    servers: Servers, rounds: int, share: float, report: Report
) -> tuple[dict[str, list[Run]], dict[str, Sizes]]:
    """Run all rounds; return the runs of each contender, and the sizes of our ledgers after the last round.

    Args:
        servers: The servers.
        rounds: How often each contender is measured.
        share: The size of the benchmark as a share of the usual size; below 1 without peers.
        report: Prints progress.
    """
    ours = our_contenders(share)
    peers: list[Contender] = writing_peers(servers) if share == 1 else []
    runs, sizes = defaultdict(list), {}
    with ledgers(servers, ours) as databases:
        for number in range(1, rounds + 1):
            for contender in [*ours, *peers]:
                template = databases[contender.organisations] if isinstance(contender, UsageFeeds) else "template0"
                with new_database(servers, template) as own:
                    done = run(contender, own)
                    runs[contender.name].append(done)
                    if isinstance(contender, UsageFeeds) and number == rounds:
                        sizes[contender.name] = measure_sizes(own)
                report(
                    f"round {number}: {contender.name}: {done.rate:,.0f}/s, {done.own_cpu_us + done.server_cpu_us:,.0f} µs"
                )
    return dict(runs), sizes
