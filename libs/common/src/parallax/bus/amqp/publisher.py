"""Publishing with confirms: when it returns, a queue has the message on disk."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final
from uuid import uuid4

from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity, PublishError
from pamqp.commands import Basic

from parallax.bus.amqp.link import Link, loss_is_unavailable
from parallax.bus.amqp.topology import Topology
from parallax.contracts.messages import Message, encode
from parallax.contracts.routing import expires_s, routing_key
from parallax.errors import PoisonError, UnavailableError, UnroutableError

PUBLISH_TIMEOUT_S: Final = 10.0
"""A confirm takes milliseconds; one that takes this long is not coming (memory alarm, lost majority of a quorum)."""
WINDOW: Final = 256
"""Unconfirmed messages of one ``publish`` call: more does not make it faster, see ``docs/adr/0008``."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""What RabbitMQ 4 accepts by default; a larger one would close the channel each time it is tried."""
PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way to the broker."""

    exchange: str
    key: str
    body: bytes
    mandatory: bool = True
    headers: Mapping[str, object] | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    expiration_ms: str | None = None
    message_id: str | None = None
    """Set only to keep a dead letter's id; otherwise a fresh one, because a repeated id confuses returned messages."""


class Publisher:
    """One confirm channel for everything a service publishes."""

    def __init__(self, link: Link, topology: Topology, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> None:
        self._link = link
        self._topology = topology
        self._timeout_s = timeout_s
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._id_prefix = uuid4().hex
        self._ids = count()

    def outgoing(self, message: Message) -> Outgoing:
        """A message of the contract, addressed."""
        lives_s = expires_s(message)
        return Outgoing(
            self._topology.exchange,
            routing_key(message),
            encode(message),
            expiration_ms=None if lives_s is None else str(1000 * lives_s),
        )

    async def send_all(self, messages: Sequence[Outgoing]) -> None:
        """Send messages in parallel, ``WINDOW`` unconfirmed at a time; raise the first error after all ended."""
        if len(messages) == 1:
            await self.send(messages[0])
            return
        remaining = iter(messages)
        lanes = (self._send_each(remaining) for _ in range(min(WINDOW, len(messages))))
        results = await asyncio.gather(*lanes, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _send_each(self, remaining: Iterator[Outgoing]) -> None:
        for message in remaining:
            await self.send(message)

    async def send(self, message: Outgoing) -> None:
        """Send one message and wait for its confirm; a missing exchange or queue is declared again, once.

        Raises:
            UnavailableError: It was not confirmed in time; it may have been delivered all the same.
            UnroutableError: No queue takes it.
        """
        if len(message.body) > MAX_BODY_BYTES:
            raise PoisonError(f"a message of {len(message.body)} bytes is larger than {MAX_BODY_BYTES}")
        try:
            await self._send_once(message)
        except (PublishError, ChannelNotFoundEntity):
            await self._declare_again()
        else:
            return
        with loss_is_unavailable("publishing"):
            try:
                await self._send_once(message)
            except PublishError as error:
                raise UnroutableError(f"no queue takes messages with the key {message.key!r}") from error

    async def _send_once(self, message: Outgoing) -> None:
        channel = self._channel
        if channel is None or channel.is_closed:
            channel = await self._open()
        try:
            await channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.key,
                properties=self._properties(message),
                mandatory=message.mandatory,
                timeout=self._timeout_s,
                wait=False,
            )
        except (PublishError, ChannelNotFoundEntity):
            raise
        except TimeoutError as error:
            raise UnavailableError(f"publishing was not confirmed within {self._timeout_s:g} s") from error
        except BaseException as error:
            with loss_is_unavailable("publishing"):
                raise error from None

    def _properties(self, message: Outgoing) -> Basic.Properties:
        return Basic.Properties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            message_id=message.message_id or f"{self._id_prefix}-{next(self._ids):x}",
            headers=dict(message.headers) if message.headers else None,  # type: ignore[arg-type]
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
            expiration=message.expiration_ms,
        )

    async def _open(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.channel(confirms=True)
            return self._channel

    async def _declare_again(self) -> None:
        connection = await self._link.connection()
        with loss_is_unavailable("declaring the queues"):
            async with asyncio.timeout(self._timeout_s):
                await self._topology.declare(connection)
