"""The queues and streams of one process, and who gets which message next."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from parallax.bus import letters
from parallax.bus.memory.consumers import (
    MemoryConsumption,
    MemoryFollowing,
    QueueState,
    Reply,
    Stored,
    StreamState,
)
from parallax.bus.port import MAX_DELIVERIES, Delivery
from parallax.clock import Clock, SystemClock
from parallax.contracts.messages import Message, encode
from parallax.contracts.routing import Queue, QueueKind, expires_s, on_demand, routing_key, topology
from parallax.errors import UnroutableError


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
        self._regions = tuple(regions)
        specs = topology(self._regions)
        self._queues = {s.name: QueueState(s) for s in specs if s.kind is QueueKind.QUORUM}
        self._streams = {s.name: StreamState(s) for s in specs if s.kind is QueueKind.STREAM}
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
        for queue in tuple(self._queues.values()):  # a handler may declare another one
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

    def _deliver(self, queue: QueueState, consumer: MemoryConsumption) -> None:
        stored = queue.ready.popleft()
        if stored.deliveries >= MAX_DELIVERIES:
            self.bury(queue.spec, stored, letters.too_many_deliveries(stored.deliveries))
            return
        stored.deliveries += 1
        consumer.take(stored)

    @staticmethod
    def _next_idle(queue: QueueState) -> MemoryConsumption | None:
        for _ in range(len(queue.consumers)):
            queue.consumers.rotate(-1)
            if queue.consumers[-1].idle:
                return queue.consumers[-1]
        return None

    def _drop_expired(self, queue: QueueState) -> bool:
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
        try:
            self._route(Stored(encode(message), key, expires_at=at), dead=False)
        except UnroutableError as error:
            raise UnroutableError(str(error), (message,)) from None

    def store_raw(self, queue: Queue, stored: Stored) -> None:
        """Put a message straight into a queue or a stream."""
        if queue.kind is QueueKind.STREAM:
            self._streams[queue.name].entries.append(stored)
        else:
            self._queue(queue).ready.append(stored)
        self.wake()

    def bury(self, queue: Queue, stored: Stored, reason: str) -> None:
        """File a message among the dead letters."""
        headers = {
            **stored.headers,
            letters.REASON_HEADER: letters.clean_reason(reason),
            letters.QUEUE_HEADER: queue.name,
            letters.KEY_HEADER: stored.key,
            letters.TIME_HEADER: self._clock.now().isoformat(),
        }
        key = letters.dead_key(queue, stored.key)
        self._route(Stored(stored.body, key, headers, stored.reply_to, stored.correlation_id), dead=True)

    def _route(self, stored: Stored, *, dead: bool) -> None:
        bound = [s for s in self._specs if s.dead is dead and any(letters.matches(k, stored.key) for k in s.keys)]
        if not dead and (waiting := on_demand(stored.key, self._regions)) is not None:
            bound.append(self._queue(waiting).spec)
        if not bound:
            raise UnroutableError(f"no queue takes messages with the key {stored.key!r}")
        for spec in bound:
            copy = Stored(
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

    def _queue(self, queue: Queue) -> QueueState:
        if queue.name not in self._queues:
            if on_demand(queue.name, self._regions) is None:
                raise UnroutableError(f"there is no queue {queue.name!r}")
            self._queues[queue.name] = QueueState(queue)
        return self._queues[queue.name]
