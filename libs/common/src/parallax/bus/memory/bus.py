"""One client of the memory broker."""

import asyncio
from collections.abc import Callable, Mapping
from uuid import uuid4

from parallax.bus.memory.broker import MemoryBroker
from parallax.bus.memory.consumers import MemoryConsumption, MemoryFollowing, Reply, Stored
from parallax.bus.port import Delivery
from parallax.contracts.messages import FenceMarker, Message, encode
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError, UnroutableError


class MemoryBus:
    """One client of a :class:`MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._open: list[MemoryConsumption | MemoryFollowing] = []
        self._closed = False

    @property
    def publishable(self) -> bool:
        """See :attr:`parallax.bus.port.Bus.publishable`."""
        return not self._closed

    async def publish(self, *messages: Message) -> None:
        """See :meth:`parallax.bus.port.Bus.publish`."""
        self._check()
        unroutable: list[UnroutableError] = []
        for message in messages:
            try:
                self._broker.store(message)
            except UnroutableError as error:
                unroutable.append(error)
        await asyncio.sleep(0)  # a publisher in a loop must not starve its consumers
        if unroutable:
            raise UnroutableError(str(unroutable[0]), [message for each in unroutable for message in each.messages])

    async def publish_raw(
        self,
        queue: Queue,
        body: bytes,
        *,
        key: str | None = None,
        headers: Mapping[str, object] | None = None,
        reply_to: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Put any bytes into a queue, as a foreign client might; answers arrive in ``replies(reply_to)``."""
        self._check()
        stored = Stored(body, key or queue.keys[0], dict(headers or {}), reply_to, correlation_id)
        self._broker.store_raw(queue, stored)

    def replies(self, reply_to: str) -> asyncio.Queue[Reply]:
        """The mailbox behind a ``reply_to``; ask for it before publishing, or the answer is dropped."""
        return self._broker.mailbox(reply_to)

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """See :meth:`parallax.bus.port.Bus.reply`."""
        self._check()
        if delivery.reply_to is not None:
            self._broker.post(delivery.reply_to, Reply(encode(message), delivery.correlation_id))

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> MemoryConsumption:
        """See :meth:`parallax.bus.port.Bus.consume`."""
        self._check()
        if prefetch < 1:
            raise ValueError("prefetch must be at least 1: a consumer without a bound drains the queue into memory")
        consumption = self._broker.add_consumer(queue, prefetch, handler)
        self._open.append(consumption)
        return consumption

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> MemoryFollowing:
        """See :meth:`parallax.bus.port.Bus.follow`."""
        self._check()
        marker = FenceMarker(token=uuid4().hex)
        following = self._broker.add_follower(stream, handler, encode(marker))
        self._open.append(following)
        self._broker.store(marker)
        await following.fenced.wait()
        return following

    async def depth(self, queue: Queue) -> int:
        """See :meth:`parallax.bus.port.Bus.depth`."""
        self._check()
        return self._broker.depth(queue)

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Bus.close`."""
        self._closed = True
        for opened in self._open:
            await opened.close()
        self._open.clear()

    def _check(self) -> None:
        if self._closed:
            raise UnavailableError("this client of the bus is closed")
