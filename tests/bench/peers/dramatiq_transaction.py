"""A dramatiq application that posts each usage in its own transaction. As a program it sends so many: `… NUMBER`."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from posting import Usage, post
from psycopg_pool import ConnectionPool

THREADS = 8
ORGANISATIONS = 1000
dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))
pool = ConnectionPool(
    os.environ["DATABASE_URL"], kwargs={"autocommit": True}, min_size=THREADS, max_size=THREADS, open=False
)


class Connections(dramatiq.Middleware):
    """Opens the connection pool in each worker process."""

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """Open the pool."""
        pool.open(wait=True)


dramatiq.get_broker().add_middleware(Connections())


@dramatiq.actor
def post_usage(org_id: int, usage_ref: str, usage_kind: str, amount: int) -> None:
    """Post a usage."""
    with pool.connection() as connection:
        post(connection, Usage(org_id, usage_ref, usage_kind, amount))


if __name__ == "__main__":
    for n in range(int(sys.argv[1])):
        post_usage.send(1 + n % ORGANISATIONS, f"usage_{n}", "ai_usage", 10)
