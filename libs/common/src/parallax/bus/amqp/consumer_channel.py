"""A consumer on a channel of its own, from its beginning until either is lost."""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from parallax.bus.amqp.connection import (
    CLOSE_TIMEOUT_S,
    ReconnectingConnection,
    close_channel,
    loss_is_unavailable,
    open_channel,
)
from parallax.bus.amqp.topology import Topology
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError

ATTACH_TIMEOUT_S: Final = 30.0
"""For each step of attaching: a broker that recovers its queues answers late."""
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 3.0
"""Between attempts to attach: a restarted broker is used again within seconds."""

OnMessage = Callable[["ConsumerChannel", DeliveredMessage], Any]
"""Called for every message; what it returns is awaited if it can be."""


class ConsumerChannel:
    """One consumer and its channel. ``ended`` is set, and ``on_end`` called, once it can deliver nothing more."""

    def __init__(self, channel: Channel, on_end: Callable[[], object]) -> None:
        self.channel = channel
        self.ended = asyncio.Event()
        self.settled_up_to = 0
        self._tag: str | None = None
        self._on_end = on_end
        channel.closing.add_done_callback(self._end)
        channel.on_consumer_cancel_callbacks.add(self._end)

    async def begin(self, queue: str, *, prefetch: int, arguments: dict[str, Any], on_message: OnMessage) -> None:
        """Start to consume."""
        await self.channel.basic_qos(prefetch_count=prefetch)
        answer = await self.channel.basic_consume(
            queue, lambda message: on_message(self, message), arguments=arguments or None
        )
        self._tag = answer.consumer_tag

    async def cancel(self) -> None:
        """Take nothing more; the channel stays open for settling.

        Raises:
            UnavailableError: The broker did not confirm it.
        """
        with loss_is_unavailable("stopping a consumer"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                assert self._tag is not None, "it has begun"
                await self.channel.basic_cancel(self._tag)

    async def close(self) -> None:
        """Close the channel; what is unsettled on it goes back to the queue."""
        self.ended.set()
        await close_channel(self.channel)

    def _end(self, _: object) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self._on_end()


async def attach(
    connection: ReconnectingConnection,
    topology: Topology,
    queue: Queue,
    *,
    prefetch: int,
    on_message: OnMessage,
    on_end: Callable[[], object],
    arguments: dict[str, Any] | None = None,
) -> ConsumerChannel:
    """Declare the queue, in case it was deleted, and consume it on a new channel.

    Raises:
        UnavailableError: The broker did not let us.
    """
    name = topology.name(queue)
    opened = await connection.connection()
    with loss_is_unavailable(f"declaring {name}"):
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            await topology.declare(opened, (queue,))
    channel = await open_channel(opened, confirms=False)
    try:
        with loss_is_unavailable(f"consuming {name}"):
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                made = ConsumerChannel(channel, on_end)
                await made.begin(name, prefetch=prefetch, arguments=arguments or {}, on_message=on_message)
                return made
    except BaseException:
        with suppress(UnavailableError):
            await close_channel(channel)
        raise


class Pauses:
    """Growing pauses between attempts, with jitter."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    async def wait(self) -> None:
        """Wait for the next one."""
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        self._next_s = min(2 * self._next_s, LONGEST_PAUSE_S)

    def reset(self) -> None:
        """Begin with the shortest one again."""
        self._next_s = FIRST_PAUSE_S


def headers_of(message: DeliveredMessage) -> Mapping[str, object]:
    """Headers of a message that may have none."""
    return message.header.properties.headers or {}


def tag_of(message: DeliveredMessage) -> int:
    """The number by which a delivery is settled on its channel."""
    assert isinstance(message.delivery, Basic.Deliver)
    assert message.delivery.delivery_tag is not None
    return message.delivery.delivery_tag
