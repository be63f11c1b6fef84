"""Acknowledgements over broken connections: which errors end a worker, and which do not?"""

from types import SimpleNamespace

import pytest

from worker.broker.consumer import DurableConsumer


class Message:
    """A message whose acknowledgement fails as in kombu after its connection was closed."""

    def __init__(self, client: object) -> None:
        self.channel = SimpleNamespace(connection=SimpleNamespace(client=client))

    def ack_log_error(self) -> None:
        raise AttributeError("hostname")


def acknowledge(message: Message) -> None:
    consumer = object.__new__(DurableConsumer)
    consumer.hub = SimpleNamespace(call_soon=lambda acknowledge: acknowledge())
    consumer.call_soon_ack(message.ack_log_error)


def test_an_acknowledgement_over_a_closed_connection_does_not_end_the_worker():
    acknowledge(Message(client=None))


def test_an_error_of_an_acknowledgement_over_an_open_connection_is_raised():
    with pytest.raises(AttributeError):
        acknowledge(Message(client=object()))
