"""The bus inside one process: the same promises as the broker's, kept by plain data structures.

A :class:`MemoryBroker` holds the queues; every :class:`MemoryBus` is one client of it. Closing a client, or
:meth:`MemoryBroker.drop_connections`, gives its unsettled deliveries back, as the loss of a connection does.

Which consumer gets which message next is decided in one place: whenever something may have become deliverable
the broker calls ``wake``. By default that schedules :meth:`MemoryBroker.deliver_all` on the event loop; a
simulation passes its own ``wake`` and picks from :meth:`MemoryBroker.choices`.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from parallax.bus import letters
from parallax.bus.port import MAX_DELIVERIES, Delivery
from parallax.clock import Clock, SystemClock
from parallax.contracts.messages import FenceMarker, Message, encode
from parallax.contracts.routing import Queue, QueueKind, expires_s, routing_key, topology
from parallax.errors import StaleDeliveryError, UnavailableError, UnroutableError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stored:
    body: bytes
    key: str
    headers: Mapping[str, object] = field(default_factory=dict)
    reply_to: str | None = None
    correlation_id: str | None = None
    expires_at: float | None = None
    deliveries: int = 0


@dataclass(slots=True)
class _QueueState:
    spec: Queue
    ready: deque[_Stored] = field(default_factory=deque)
    consumers: deque["MemoryConsumption"] = field(default_factory=deque)


@dataclass(slots=True)
class _StreamState:
    spec: Queue
    entries: list[_Stored] = field(default_factory=list)
    followers: list["MemoryFollowing"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as its requester gets it."""

    body: bytes
    correlation_id: str | None


class MemoryDelivery:
    """One message in the hands of a consumer of the memory bus."""

    __slots__ = ("_consumption", "_stored", "_tag", "settled", "stale")

    def __init__(self, consumption: "MemoryConsumption", tag: int, stored: _Stored) -> None:
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
        self, broker: "MemoryBroker", queue: _QueueState, prefetch: int, handler: Callable[[Delivery], None]
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._next_tag = 1
        self._unsettled: OrderedDict[int, tuple[MemoryDelivery, _Stored]] = OrderedDict()
        self.live = True

    @property
    def idle(self) -> bool:
        """Whether it may be given another message."""
        return self.live and len(self._unsettled) < self._prefetch

    def take(self, stored: _Stored) -> None:
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

    def bury(self, tag: int, stored: _Stored, reason: str) -> None:
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
        self, broker: "MemoryBroker", stream: _StreamState, handler: Callable[[bytes], None], token: bytes
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


@dataclass(frozen=True, slots=True)
class Choice:
    """One delivery that could happen now: ``deliver()`` makes it happen."""

    queue: str
    deliver: Callable[[], None]


class MemoryBroker:
    """The queues of one process. Not safe across threads; lives on one event loop."""

    def __init__(
        self,
        regions: Iterable[str],
        *,
        clock: Clock | None = None,
        wake: Callable[["MemoryBroker"], None] | None = None,
    ) -> None:
        specs = topology(regions)
        self._queues = {s.name: _QueueState(s) for s in specs if s.kind is QueueKind.QUORUM}
        self._streams = {s.name: _StreamState(s) for s in specs if s.kind is QueueKind.STREAM}
        self._specs = specs
        self._clock = clock or SystemClock()
        self._wake = wake
        self._scheduled = False
        self._mailboxes: dict[str, asyncio.Queue[Reply]] = {}

    # --- delivering

    def wake(self) -> None:
        """Something may have become deliverable."""
        if self._wake is not None:
            self._wake(self)
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.deliver_all)

    def deliver_all(self) -> None:
        """Deliver whatever can be delivered, consumers of a queue in turn."""
        self._scheduled = False
        for queue in self._queues.values():
            while self._drop_expired(queue) and (consumer := self._next_idle(queue)) is not None:
                self._deliver(queue, consumer)
        for stream in self._streams.values():
            for follower in tuple(stream.followers):
                while follower.behind:
                    follower.read()

    def choices(self) -> list[Choice]:
        """Every delivery that could happen next, in a stable order."""
        found: list[Choice] = []
        for name, queue in self._queues.items():
            if self._drop_expired(queue):
                idle = [consumer for consumer in queue.consumers if consumer.idle]
                found += [Choice(name, lambda q=queue, c=consumer: self._deliver(q, c)) for consumer in idle]  # type: ignore[misc]
        for name, stream in self._streams.items():
            found += [Choice(name, follower.read) for follower in stream.followers if follower.behind]
        return found

    def _deliver(self, queue: _QueueState, consumer: MemoryConsumption) -> None:
        stored = queue.ready.popleft()
        if stored.deliveries >= MAX_DELIVERIES:
            self.bury(queue.spec, stored, letters.too_many_deliveries(stored.deliveries))
            return
        stored.deliveries += 1
        consumer.take(stored)

    @staticmethod
    def _next_idle(queue: _QueueState) -> MemoryConsumption | None:
        for _ in range(len(queue.consumers)):
            queue.consumers.rotate(-1)
            if queue.consumers[-1].idle:
                return queue.consumers[-1]
        return None

    def _drop_expired(self, queue: _QueueState) -> bool:
        """Drop what expired at the head; say whether anything is left."""
        while queue.ready and (at := queue.ready[0].expires_at) is not None and at <= self._clock.monotonic():
            queue.ready.popleft()
        return bool(queue.ready)

    def drop_connections(self) -> None:
        """As if every connection broke and was made again: what was unsettled is delivered anew."""
        for queue in self._queues.values():
            for consumer in queue.consumers:
                consumer.lose()

    # --- storing

    def store(self, message: Message) -> None:
        """Route a message to the queues bound to its key.

        Raises:
            UnroutableError: There is none.
        """
        key, lives_s = routing_key(message), expires_s(message)
        at = None if lives_s is None else self._clock.monotonic() + lives_s
        self._route(_Stored(encode(message), key, expires_at=at), dead=False)

    def store_raw(self, queue: Queue, stored: _Stored) -> None:
        """Put a message straight into a queue."""
        self._queues[queue.name].ready.append(stored)
        self.wake()

    def bury(self, queue: Queue, stored: _Stored, reason: str) -> None:
        """File a message among the dead letters."""
        headers = {
            **stored.headers,
            letters.REASON_HEADER: letters.clean_reason(reason),
            letters.QUEUE_HEADER: queue.name,
            letters.KEY_HEADER: stored.key,
            letters.TIME_HEADER: self._clock.now().isoformat(),
        }
        key = letters.dead_key(queue, stored.key)
        self._route(_Stored(stored.body, key, headers, stored.reply_to, stored.correlation_id), dead=True)

    def _route(self, stored: _Stored, *, dead: bool) -> None:
        bound = [s for s in self._specs if s.dead is dead and any(letters.matches(k, stored.key) for k in s.keys)]
        if not bound:
            raise UnroutableError(f"no queue takes messages with the key {stored.key!r}")
        for spec in bound:
            copy = _Stored(
                stored.body, stored.key, stored.headers, stored.reply_to, stored.correlation_id, stored.expires_at
            )
            if spec.kind is QueueKind.STREAM:
                self._streams[spec.name].entries.append(copy)
            else:
                self._queues[spec.name].ready.append(copy)
        self.wake()

    def depth(self, queue: Queue) -> int:
        """Messages that wait in a queue."""
        now = self._clock.monotonic()
        return sum(1 for s in self._queue(queue).ready if s.expires_at is None or s.expires_at > now)

    # --- clients

    def add_consumer(self, queue: Queue, prefetch: int, handler: Callable[[Delivery], None]) -> MemoryConsumption:
        """Begin to deliver a queue's messages to a handler."""
        state = self._queue(queue)
        consumption = MemoryConsumption(self, state, prefetch, handler)
        state.consumers.append(consumption)
        self.wake()
        return consumption

    def add_follower(self, stream: Queue, handler: Callable[[bytes], None], token: bytes) -> MemoryFollowing:
        """Begin to read a stream from its first entry."""
        state = self._streams[stream.name]
        following = MemoryFollowing(self, state, handler, token)
        state.followers.append(following)
        self.wake()
        return following

    def mailbox(self, reply_to: str) -> asyncio.Queue[Reply]:
        """The answers sent to ``reply_to``; made when first asked for."""
        return self._mailboxes.setdefault(reply_to, asyncio.Queue())

    def post(self, reply_to: str, reply: Reply) -> None:
        """Put an answer into a mailbox; dropped when nobody made one."""
        if reply_to in self._mailboxes:
            self._mailboxes[reply_to].put_nowait(reply)

    def _queue(self, queue: Queue) -> _QueueState:
        if queue.name not in self._queues:
            raise UnroutableError(f"there is no queue {queue.name!r}")
        return self._queues[queue.name]


class MemoryBus:
    """One client of a :class:`MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._open: list[MemoryConsumption | MemoryFollowing] = []
        self._closed = False

    async def publish(self, *messages: Message) -> None:
        """See :meth:`parallax.bus.port.Bus.publish`."""
        self._check()
        for message in messages:
            self._broker.store(message)
        await asyncio.sleep(0)  # a publisher in a loop must not starve its consumers

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
        stored = _Stored(body, key or queue.keys[0], dict(headers or {}), reply_to, correlation_id)
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
