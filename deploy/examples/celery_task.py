"""Send a list of events as the Celery task `events.post`. Nothing of usage-feeds is imported."""  # noqa: INP001 -- a script

import os

from celery import Celery

events = [
    {"type": "grant", "org_id": "org_a", "grant_ref": "grant_1", "credits": 100, "source": "plan"},
    {"type": "usage", "org_id": "org_a", "usage_ref": "usage_2", "usage_kind": "tm_usage", "credits": 2},
]
app = Celery(broker=os.environ["CELERY_BROKER_URL"])  # Redis or RabbitMQ
# For RabbitMQ; Redis ignores both. It refuses a queue that is not declared as the workers declare it, and a message is
# stored once it has confirmed it.
app.conf.task_create_missing_queue_type = "quorum"
app.conf.broker_transport_options = {"confirm_publish": True}

app.send_task("events.post", args=[events], queue="events")
