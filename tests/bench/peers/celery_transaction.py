"""A Celery application that posts each usage in its own transaction."""

import os

import psycopg
from celery import Celery
from celery.signals import worker_process_init
from posting import Usage, post

app = Celery("transaction", broker=os.environ["REDIS_URL"])
app.conf.task_ignore_result = True
app.conf.task_acks_late = True  # a killed worker loses no usage, and posting one twice is harmless
connections: list[psycopg.Connection] = []


@worker_process_init.connect
def open_connection(**_: object) -> None:
    """Open one connection for each process of the pool."""
    connections.append(psycopg.connect(os.environ["DATABASE_URL"], autocommit=True))


@app.task(name="post_usage")
def post_usage(org_id: int, usage_ref: str, usage_kind: str, amount: int) -> None:
    """Post a usage."""
    post(connections[0], Usage(org_id, usage_ref, usage_kind, amount))
