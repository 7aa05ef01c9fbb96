"""Publishing with confirms: when it returns, a queue has the message on disk."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from parallax.bus.amqp.link import Link, loss_is_unavailable
from parallax.bus.amqp.topology import Topology
from parallax.bus.amqp.window import Outgoing, Window
from parallax.contracts.messages import Message, encode
from parallax.contracts.routing import expires_s, routing_key
from parallax.errors import PoisonError, UnavailableError, UnroutableError

PUBLISH_TIMEOUT_S: Final = 10.0
"""A confirm takes milliseconds; one that takes this long is not coming (memory alarm, lost majority of a quorum)."""
WINDOW: Final = 256
"""Most messages sent together: more does not make it faster, see ``docs/adr/0008``."""
WINDOW_BYTES: Final = 1024 * 1024
"""Most bytes sent together, unless a single message has more."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""What RabbitMQ 4 accepts by default; a larger one would close the channel each time it is tried."""


class Publisher:
    """One confirm channel for everything a service publishes."""

    def __init__(self, link: Link, topology: Topology, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> None:
        self._link = link
        self._topology = topology
        self._timeout_s = timeout_s
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()

    def outgoing(self, message: Message) -> Outgoing:
        """A message of the contract, addressed."""
        lives_s = expires_s(message)
        return Outgoing(
            self._topology.exchange,
            routing_key(message),
            encode(message),
            expiration_ms=None if lives_s is None else str(1000 * lives_s),
        )

    async def send(self, *messages: Outgoing) -> None:
        """Send messages and wait for their confirms; a missing exchange or queue is declared again, once.

        Raises:
            UnavailableError: Not confirmed in time; some may have been delivered all the same.
            UnroutableError: No queue takes one of them; the others were delivered.
            PoisonError: One is too large for the broker; none was sent.
        """
        for message in messages:
            if len(message.body) > MAX_BODY_BYTES:
                raise PoisonError(f"a message of {len(message.body)} bytes is larger than {MAX_BODY_BYTES}")
        undelivered = [each for window in _windows(messages) for each in await self._send(window)]
        if not undelivered:
            return
        await self._declare_again(undelivered)
        undelivered = [each for window in _windows(undelivered) for each in await self._send(window, again=True)]
        if undelivered:
            raise UnroutableError(f"no queue takes messages with the key {undelivered[0].key!r}")

    async def _send(self, messages: Sequence[Outgoing], *, again: bool = False) -> list[Outgoing]:
        """Send messages together; returns those that want for a queue, or, at the first try, for their exchange."""
        channel = self._channel
        if channel is None or channel.is_closed:
            channel = await self._open()
        window = Window(channel, messages)
        try:
            async with asyncio.timeout(self._timeout_s):
                await window.send()
        except TimeoutError as error:
            raise UnavailableError(f"publishing was not confirmed within {self._timeout_s:g} s") from error
        except BaseException as error:
            if again or not isinstance(error, ChannelNotFoundEntity):
                with loss_is_unavailable("publishing"):
                    raise error from None
        return window.undelivered

    async def _open(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.channel(confirms=True)
            return self._channel

    async def _declare_again(self, undelivered: Sequence[Outgoing]) -> None:
        connection = await self._link.connection()
        with loss_is_unavailable("declaring the queues"):
            async with asyncio.timeout(self._timeout_s):
                await self._topology.declare(connection, self._topology.needed(each.key for each in undelivered))


def _windows(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """The messages in their order, as many at a time as are sent together."""
    first = size_bytes = 0
    for index, message in enumerate(messages):
        size_bytes += len(message.body)
        if index - first == WINDOW or (size_bytes > WINDOW_BYTES and index > first):
            yield messages[first:index]
            first, size_bytes = index, len(message.body)
    if messages:
        yield messages[first:]
