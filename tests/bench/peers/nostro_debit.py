"""Debit hf-nostro accounts. Run it with `fill` first, then with `debit PROCESSES EVENTS`."""

import os
import sys
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import psycopg
from nostro import Ledger
from nostro.migrate import migrate
from psycopg_pool import ConnectionPool

URL = os.environ["DATABASE_URL"]
ACCOUNTS = 1000
SCALE = 0


def fill() -> None:
    """Create the schema and the accounts, each with enough credits."""
    migrate(dsn=URL, scale=SCALE)
    ledger = Ledger(dsn=URL, scale=SCALE)
    with psycopg.connect(URL) as connection, connection.cursor() as cursor:
        for n in range(ACCOUNTS):
            account = ledger.accounts.create("bench", f"org_{n}", cur=cursor)
            amount = ledger.amount(1_000_000_000)
            ledger.credit(account, amount, category="topup", idempotency_key=f"grant_{n}", cur=cursor)


def debit(processes: int, events: int) -> None:
    """Debit once for each event, with so many processes. No two processes use the same account."""
    context = get_context("fork")
    start = context.Barrier(processes)
    shares = [range(first, events, processes) for first in range(processes)]
    children = [context.Process(target=debit_share, args=(share, start)) for share in shares]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(max(child.exitcode for child in children))


def debit_share(share: range, start: Barrier) -> None:
    """Wait until all processes are ready, then debit the share of one process."""
    with ConnectionPool(URL, min_size=1, max_size=1) as pool:
        ledger = Ledger(pool=pool, scale=SCALE)
        accounts = account_ids(pool)
        ledger.balance(accounts[0])  # the first call checks the schema
        amount = ledger.amount(10)
        start.wait()
        for n in share:
            ledger.debit(accounts[n % ACCOUNTS], amount, category="ai_usage", idempotency_key=f"usage_{n}")


def account_ids(pool: ConnectionPool) -> list:
    """Return the ids of all accounts. An application can store them too, so that nostro need not look them up."""
    with pool.connection() as connection:
        return [account_id for (account_id,) in connection.execute("SELECT id FROM nostro.account ORDER BY id")]


if __name__ == "__main__":
    fill() if sys.argv[1] == "fill" else debit(int(sys.argv[2]), int(sys.argv[3]))
