"""Who takes messages from the memory broker: deliveries, consumers of queues, readers of streams."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parallax.bus.port import Delivery
from parallax.contracts.routing import Queue
from parallax.errors import StaleDeliveryError

if TYPE_CHECKING:
    from parallax.bus.memory.broker import MemoryBroker

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stored:
    """One message as the broker keeps it."""

    body: bytes
    key: str
    headers: Mapping[str, object] = field(default_factory=dict)
    reply_to: str | None = None
    correlation_id: str | None = None
    expires_at: float | None = None
    deliveries: int = 0


@dataclass(slots=True)
class QueueState:
    """A queue: what waits, and who takes it."""

    spec: Queue
    ready: deque[Stored] = field(default_factory=deque)
    consumers: deque["MemoryConsumption"] = field(default_factory=deque)


@dataclass(slots=True)
class StreamState:
    """A stream: all that was ever written, and who reads it."""

    spec: Queue
    entries: list[Stored] = field(default_factory=list)
    followers: list["MemoryFollowing"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as its requester gets it."""

    body: bytes
    correlation_id: str | None


class MemoryDelivery:
    """One message in the hands of a consumer of the memory bus."""

    __slots__ = ("_consumption", "_stored", "_tag", "settled", "stale")

    def __init__(self, consumption: "MemoryConsumption", tag: int, stored: Stored) -> None:
        self._consumption = consumption
        self._tag = tag
        self._stored = stored
        self.settled = False
        self.stale = False

    @property
    def body(self) -> bytes:
        """The message as it was published."""
        return self._stored.body

    @property
    def headers(self) -> Mapping[str, object]:
        """Headers of the message."""
        return self._stored.headers

    @property
    def delivery_count(self) -> int:
        """How often it was delivered before."""
        return self._stored.deliveries - 1

    @property
    def reply_to(self) -> str | None:
        """The mailbox of the requester."""
        return self._stored.reply_to

    @property
    def correlation_id(self) -> str | None:
        """What the requester wants to see in the answer."""
        return self._stored.correlation_id

    async def ack(self, *, multiple: bool = False) -> None:
        """See :meth:`parallax.bus.port.Delivery.ack`."""
        self._check()
        self._consumption.settle(self._tag, multiple=multiple)

    async def requeue(self) -> None:
        """See :meth:`parallax.bus.port.Delivery.requeue`."""
        self._check()
        self._consumption.give_back(self._tag)

    async def reject(self, reason: str) -> None:
        """See :meth:`parallax.bus.port.Delivery.reject`."""
        self._check()
        self._consumption.bury(self._tag, self._stored, reason)

    def _check(self) -> None:
        if self.stale:
            raise StaleDeliveryError("the consumer that held this delivery is gone")
        if self.settled:
            raise RuntimeError("this delivery was settled before")


class MemoryConsumption:
    """A consumer of one queue of the memory broker."""

    def __init__(
        self, broker: "MemoryBroker", queue: QueueState, prefetch: int, handler: Callable[[Delivery], None]
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._next_tag = 1
        self._unsettled: OrderedDict[int, tuple[MemoryDelivery, Stored]] = OrderedDict()
        self.live = True

    @property
    def idle(self) -> bool:
        """Whether it may be given another message."""
        return self.live and len(self._unsettled) < self._prefetch

    def take(self, stored: Stored) -> None:
        """Hand a message to the handler."""
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        delivery = MemoryDelivery(self, tag, stored)
        self._unsettled[tag] = (delivery, stored)
        try:
            self._handler(delivery)
        except Exception:
            log.exception("the handler of %s raised; its delivery stays unsettled", self._queue.spec.name)

    def settle(self, tag: int, *, multiple: bool = False) -> None:
        """Forget a delivery, or every one up to it."""
        tags = [earlier for earlier in self._unsettled if earlier <= tag] if multiple else [tag]
        for each in tags:
            self._unsettled.pop(each)[0].settled = True
        self._broker.wake()

    def give_back(self, tag: int) -> None:
        """Put a delivery back at the head of its queue."""
        delivery, stored = self._unsettled.pop(tag)
        delivery.settled = True
        self._queue.ready.appendleft(stored)
        self._broker.wake()

    def bury(self, tag: int, stored: Stored, reason: str) -> None:
        """Move a delivery to the dead letters."""
        self._broker.bury(self._queue.spec, stored, reason)
        self.settle(tag)

    def lose(self) -> None:
        """Give everything unsettled back, in its old order; the handles turn stale."""
        for delivery, stored in reversed(self._unsettled.values()):
            delivery.stale = True
            self._queue.ready.appendleft(stored)
        self._unsettled.clear()
        self._broker.wake()

    async def stop(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.stop`."""
        self.live = False
        if self in self._queue.consumers:
            self._queue.consumers.remove(self)

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Consumption.close`."""
        await self.stop()
        self.lose()


class MemoryFollowing:
    """A reader of a stream of the memory broker."""

    def __init__(
        self, broker: "MemoryBroker", stream: StreamState, handler: Callable[[bytes], None], token: bytes
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._handler = handler
        self._token = token
        self._offset = 0
        self.fenced = asyncio.Event()
        self.live = True

    @property
    def behind(self) -> bool:
        """Whether the stream holds entries that it has not read."""
        return self.live and self._offset < len(self._stream.entries)

    def read(self) -> None:
        """Read one entry."""
        entry = self._stream.entries[self._offset]
        self._offset += 1
        if entry.body == self._token:
            self.fenced.set()
        elif not entry.key.startswith("fence."):
            try:
                self._handler(entry.body)
            except Exception:
                log.exception("the handler of stream %s raised; reading goes on", self._stream.spec.name)

    async def close(self) -> None:
        """See :meth:`parallax.bus.port.Following.close`."""
        self.live = False
        if self in self._stream.followers:
            self._stream.followers.remove(self)
