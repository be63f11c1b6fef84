from types import SimpleNamespace

import pytest

from worker.broker.consumer import DurableConsumer


class Message:
    """A message whose acknowledgement fails as kombu's does once its connection was given up."""

    def __init__(self, client: object) -> None:
        self.channel = SimpleNamespace(connection=SimpleNamespace(client=client))

    def ack_log_error(self) -> None:
        raise AttributeError("hostname")


def settle(message: Message) -> None:
    consumer = object.__new__(DurableConsumer)
    consumer.hub = SimpleNamespace(call_soon=lambda settle: settle())
    consumer.call_soon_ack(message.ack_log_error)


def test_an_acknowledgement_over_a_connection_that_is_gone_does_not_end_the_worker():
    settle(Message(client=None))


def test_a_mistake_over_a_connection_that_is_there_is_not_hidden():
    with pytest.raises(AttributeError):
        settle(Message(client=object()))
