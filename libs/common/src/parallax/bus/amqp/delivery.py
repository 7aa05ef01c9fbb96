"""One message in the hands of a consumer, and how it is settled."""

from collections.abc import Awaitable, Callable, Mapping

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError

from parallax.bus.amqp.connection import loss_is_unavailable
from parallax.bus.amqp.consumer_channel import ConsumerChannel, headers_of, tag_of
from parallax.errors import StaleDeliveryError, UnavailableError

DeadLetter = Callable[[DeliveredMessage, str], Awaitable[None]]
"""Publishes a copy of a message to the dead letters, with the reason."""


class AmqpDelivery:
    """One message in the hands of a consumer."""

    __slots__ = ("_consumer", "_dead_letter", "_message", "_settled")

    def __init__(self, message: DeliveredMessage, channel: ConsumerChannel, dead_letter: DeadLetter) -> None:
        self._dead_letter = dead_letter
        self._consumer = channel
        self._message = message
        self._settled = False

    @property
    def body(self) -> bytes:
        """The message as it was published."""
        return self._message.body

    @property
    def headers(self) -> Mapping[str, object]:
        """Headers of the message."""
        return headers_of(self._message)

    @property
    def delivery_count(self) -> int:
        """How often it was delivered before."""
        count = headers_of(self._message).get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def reply_to(self) -> str | None:
        """Where the requester listens."""
        return self._message.header.properties.reply_to

    @property
    def correlation_id(self) -> str | None:
        """What the requester wants to see in the answer."""
        return self._message.header.properties.correlation_id

    async def ack(self, *, multiple: bool = False) -> None:
        """See :meth:`parallax.bus.port.Delivery.ack`."""
        tag = self._claim()
        if multiple:
            self._consumer.settled_up_to = tag
        await self._settle(self._consumer.channel.basic_ack(tag, multiple=multiple, wait=False))

    async def requeue(self) -> None:
        """See :meth:`parallax.bus.port.Delivery.requeue`.

        A reject, because RabbitMQ 4.3 and later count it as a failed delivery, and a nack not at all.
        """
        tag = self._claim()
        await self._settle(self._consumer.channel.basic_reject(tag, requeue=True, wait=False))

    async def pass_on(self) -> None:
        """Give it back unseen: nothing failed, so newer brokers need not count it."""
        tag = self._claim()
        await self._settle(self._consumer.channel.basic_nack(tag, requeue=True, wait=False))

    async def reject(self, reason: str) -> None:
        """See :meth:`parallax.bus.port.Delivery.reject`.

        Raises:
            UnavailableError: The dead letter could not be stored; the delivery is still ours to settle.
        """
        tag = self._claim()
        try:
            await self._dead_letter(self._message, reason)
        except BaseException:
            self._settled = False
            raise
        await self._settle(self._consumer.channel.basic_ack(tag, wait=False))

    def _claim(self) -> int:
        """The delivery tag, to be settled now. A tag settled twice would close the channel for everyone on it."""
        if self._consumer.ended.is_set():
            raise StaleDeliveryError("the channel of this delivery is gone")
        tag = tag_of(self._message)
        if self._settled or tag <= self._consumer.settled_up_to:
            raise RuntimeError("this delivery was settled before")
        self._settled = True
        return tag

    @staticmethod
    async def _settle(sending: Awaitable[None]) -> None:
        try:
            with loss_is_unavailable("settling"):
                try:
                    await sending
                except ChannelInvalidStateError as error:
                    raise StaleDeliveryError("the channel of this delivery is gone") from error
        except UnavailableError as error:
            raise StaleDeliveryError("the channel of this delivery is gone") from error
