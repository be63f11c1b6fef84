"""A FastAPI application that spends credits, with a Celery app and a task of its own.

    uvicorn fastapi_host:app
    celery --app fastapi_host:tasks worker

It reads CELERY_BROKER_URL for its own tasks, and CREDITS_REDIS_URL for the streams of usage-feeds.
"""  # noqa: INP001 -- a script

import os

from celery import Celery, shared_task
from celery.utils.log import get_task_logger
from fastapi import FastAPI, HTTPException
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from worker.producer import Producer

app = FastAPI()
tasks = Celery("fastapi_host", broker=os.environ["CELERY_BROKER_URL"])
tasks.set_default()  # for all threads: Celery makes an app current only in the thread that creates it

# One for each process. It connects when it first sends. The address is passed, so the broker is that Redis too, and not
# the CELERY_BROKER_URL of this application.
producer = Producer(os.environ["CREDITS_REDIS_URL"])
log = get_task_logger(__name__)


@shared_task(name="send_receipt", ignore_result=True)
def send_receipt(ref: str) -> None:
    """Stand for work that the application does itself."""
    log.info("receipt for %s", ref)


@app.post("/calls/{ref}", status_code=204)
def call(ref: str) -> None:  # without `async`, so it runs in a thread: a Producer blocks
    """Answer 503 if the credit may not be spent: the caller sends the same ref again, and it is spent once."""
    try:
        producer.usage("org_a", ref, "ai_usage", credits=1)
        send_receipt.delay(ref)
    except (RedisError, KombuError) as error:
        raise HTTPException(503, headers={"Retry-After": "1"}) from error
