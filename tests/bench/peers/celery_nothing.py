"""A Celery application whose task does nothing. `--broker` gives the URL of its broker."""

from celery import Celery

app = Celery("nothing")
app.conf.task_ignore_result = True


@app.task(name="nothing")
def nothing(n: int) -> None:
    """Do nothing."""
