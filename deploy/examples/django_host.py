"""A Django application that spends credits, with a Celery app and a task of its own.

    gunicorn --preload --workers 2 django_host:application
    celery --app django_host worker

It reads PGDATABASE and libpq's other variables for its database, CELERY_BROKER_URL for its own tasks,
CREDITS_REDIS_URL for the streams of usage-feeds, and SECRET_KEY.
"""  # noqa: INP001 -- a script

import os
from functools import partial

import django
from celery import Celery, shared_task
from celery.utils.log import get_task_logger
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from worker.producer import Producer

postgres = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"],
    "DISABLE_SERVER_SIDE_CURSORS": True,  # PgBouncer in transaction mode needs that
}
logging_to_stderr = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
}
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": postgres},
    INSTALLED_APPS=[__name__],
    LOGGING=logging_to_stderr,
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ["SECRET_KEY"],
)
django.setup()

app = Celery("django_host", broker=os.environ["CELERY_BROKER_URL"])
app.set_default()  # for all threads: Celery makes an app current only in the thread that creates it

# One for each process. It connects when it first sends, and again after a fork. The address is passed, so the broker
# is that Redis too, and not the CELERY_BROKER_URL of this application.
producer = Producer(os.environ["CREDITS_REDIS_URL"])
log = get_task_logger(__name__)


class Call(models.Model):
    """A call of a customer."""

    ref = models.CharField(max_length=64, primary_key=True)

    class Meta:
        """All is in one file, so Django must be told the application."""

        app_label = __name__

    def __str__(self) -> str:
        """Return the ref."""
        return self.ref


@shared_task(name="send_receipt", ignore_result=True)
def send_receipt(ref: str) -> None:
    """Stand for work that the application does itself."""
    log.info("receipt for %s", ref)


def spend(ref: str) -> None:
    """Spend a credit for a call that is committed. A repeat with the same ref spends nothing more."""
    producer.usage("org_a", ref, "ai_usage", credits=1)
    send_receipt.delay(ref)


def call(request: HttpRequest, ref: str) -> HttpResponse:
    """Answer 503 if the call is stored but the credit may not be spent: the caller sends the same ref again."""
    if request.method != "POST":
        return HttpResponse(status=405)
    try:
        with transaction.atomic():
            Call.objects.get_or_create(ref=ref)
            transaction.on_commit(partial(spend, ref))
    except (RedisError, KombuError):
        return HttpResponse(status=503, headers={"Retry-After": "1"})
    return HttpResponse(status=204)


urlpatterns = [path("calls/<str:ref>", call)]
application = get_wsgi_application()
