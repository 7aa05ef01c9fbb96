"""What a service may do with messages, whichever bus carries them.

Delivery is at least once and unordered between consumers. A delivery that is not settled comes back, to this
consumer or to another one of the same queue. ``tests/contract/test_bus.py`` is the suite every bus must pass.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from parallax.contracts.messages import Message
from parallax.contracts.routing import Queue

MAX_DELIVERIES: Final = 20
"""A message delivered this often without being settled is dead-lettered by the bus before a handler sees it.

Each loss of a consumer counts as a delivery, so the bound leaves room for a bad day of restarts.
"""


class Delivery(Protocol):
    """One message in the hands of a consumer, until it is settled."""

    @property
    def body(self) -> bytes:
        """The message as it was published."""
        ...

    @property
    def headers(self) -> Mapping[str, object]:
        """Headers of the message."""
        ...

    @property
    def delivery_count(self) -> int:
        """How often the message was delivered before; 0 on the first delivery. A hint: it may be too low."""
        ...

    @property
    def reply_to(self) -> str | None:
        """Where the publisher wants an answer."""
        ...

    @property
    def correlation_id(self) -> str | None:
        """What the publisher wants to see in the answer."""
        ...

    async def ack(self, *, multiple: bool = False) -> None:
        """Done with it; ``multiple`` also settles every earlier delivery of this consumption.

        Raises:
            StaleDeliveryError: The delivery's channel is gone; the message will be delivered again.
        """
        ...

    async def requeue(self) -> None:
        """Give it back, to be delivered again to anyone.

        Raises:
            StaleDeliveryError: As for ``ack``; it goes back by itself.
        """
        ...

    async def reject(self, reason: str) -> None:
        """Move it to the dead letters with a reason (header ``x-parallax-reason``).

        Raises:
            StaleDeliveryError: As for ``ack``.
        """
        ...


class Consumption(Protocol):
    """A consumer of one queue."""

    @property
    def live(self) -> bool:
        """Whether the broker has this consumer right now."""
        ...

    async def stop(self) -> None:
        """Take nothing more; deliveries already here can still be settled."""
        ...

    async def close(self) -> None:
        """Stop, and let every unsettled delivery go back to the queue."""
        ...


class Following(Protocol):
    """A reader of a stream that has seen everything written before it began."""

    @property
    def live(self) -> bool:
        """Whether new entries arrive right now."""
        ...

    async def close(self) -> None:
        """Stop reading."""
        ...


class Bus(Protocol):
    """A connection to the installation's messages."""

    @property
    def publishable(self) -> bool:
        """Whether the broker would accept a message right now: it is connected and does not block publishing."""
        ...

    async def publish(self, *messages: Message) -> None:
        """Publish, and return once every message is confirmed to be stored in a queue.

        Raises:
            UnavailableError: Nothing was sent; repeating the call is harmless.
            UnconfirmedError: Some messages may have been delivered, and none will be any more.
            UnroutableError: Some messages, which it lists, have no queue; every other one was delivered.
        """
        ...

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """Answer to the delivery's ``reply_to``; an answer that nobody waits for is dropped.

        Raises:
            UnavailableError: As for ``publish``.
        """
        ...

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> Consumption:
        """Hand deliveries of a queue to ``handler``, at most ``prefetch`` unsettled ones at a time.

        The consumption survives lost connections: it attaches again, and what was unsettled is delivered again. Once
        stopped it never attaches again.
        """
        ...

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> Following:
        """Read a stream from its first entry; return once everything written before the call was handled (the fence).

        After a lost connection reading resumes behind the last entry handled. ``handler`` never sees markers.
        """
        ...

    async def depth(self, queue: Queue) -> int:
        """How many messages of a queue wait to be delivered; none when the queue does not exist."""
        ...

    async def close(self) -> None:
        """Close every consumer and connection."""
        ...
