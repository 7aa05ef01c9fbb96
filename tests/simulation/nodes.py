"""A service in the simulation: its tasks, its connections, and how it dies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar, copy_context
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus, MemoryConsumption
from parallax.bus.port import Consumption, Delivery, Following
from parallax.contracts.messages import JobCancelled, Message, decode
from parallax.contracts.routing import Queue
from parallax.errors import UnavailableError, UnconfirmedError
from parallax.health import Health
from tests.simulation.faults import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World

OWNER: ContextVar["Node | None"] = ContextVar("OWNER", default=None)
"""The service whose code is running."""


class ViolationError(AssertionError):
    """An invariant does not hold."""


class Node:
    """One replica of a service. ``dying`` blocks at its next side effect; ``dead`` can do nothing any more."""

    def __init__(self, world: "World", name: str, region: str | None, budget: int) -> None:
        self.world = world
        self.name = name
        self.region = region
        self.budget = budget
        self.dying = False
        self.dead = False
        self.ready = False
        self.cancelled_jobs: set[str] = set()
        """What it has read in the cancellation stream."""
        self.fenced = False
        self.awake = asyncio.Event()
        """Cleared while the process is stopped."""
        self.awake.set()
        self.inbox: list[Callable[[], None]] = []
        """What arrived at its sockets while it was stopped."""
        self.losses = 0
        """How often the broker has dropped its connections."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.bus = SimBus(self, world.broker)
        self.engine = SimEngine(self, world.engine)
        self.context = copy_context()
        self.context.run(OWNER.set, self)
        self._leave = asyncio.Event()
        self.root: asyncio.Task[None] | None = None

    def start(self, running: Callable[["Node"], AbstractAsyncContextManager[Health]]) -> None:
        """Begin to run the service."""

        async def life() -> None:
            async with running(self):
                self.ready = True
                await self._leave.wait()
                self.ready = False

        self.root = self.context.run(asyncio.get_running_loop().create_task, life(), name=self.name)

    def leave(self) -> None:
        """Ask the service to stop in an orderly way; a process that is stopped gets the signal when it goes on."""
        self.receive(self._leave.set)

    @property
    def ended(self) -> bool:
        """Whether the service is gone."""
        return self.dead or (self.root is not None and self.root.done())

    async def point(self, kind: str, detail: str = "") -> Fault | None:
        """A side effect is about to happen (or just happened): the moment for a fault.

        Returns:
            The fault that the caller has to act out, if any; crashes never return.
        """
        await self.going_on(kind)
        fault = self.world.faults.at(kind)
        if fault is not None:
            self.world.tell(f"{fault.value} at {kind} {detail}", self)
        return fault

    async def going_on(self, kind: str) -> None:
        """Returns when the process may act: never when it dies, and later when it is stopped.

        A transaction that has begun ends all the same, because there is just one connection for everybody.
        """
        if self.dead:
            raise asyncio.CancelledError
        if not self.awake.is_set() and kind not in ("commit", "committed"):
            task = asyncio.current_task()
            assert task is not None
            self.world.frozen.add(task)
            self.world.stir.set()
            try:
                await self.awake.wait()
            finally:
                self.world.frozen.discard(task)
        if self.dying:
            await self._freeze()

    def receive(self, callback: Callable[[], None]) -> None:
        """Something arrives at the process."""
        if self.awake.is_set():
            callback()
        else:
            self.inbox.append(callback)

    def wake(self) -> None:
        """Go on where it was stopped."""
        arrived, self.inbox = self.inbox, []
        self.awake.set()
        for callback in arrived:
            callback()

    async def crash(self) -> None:
        """Die here."""
        self.dying = True
        await self._freeze()

    async def _freeze(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.world.frozen.add(task)
        self.world.stir.set()
        await asyncio.get_running_loop().create_future()


class SimEngine:
    """Stands in for the engine: transactions one at a time, each a place for faults."""

    def __init__(self, node: Node, real: AsyncEngine) -> None:
        self._node = node
        self._real = real

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """See ``AsyncEngine.begin``."""
        node, world = self._node, self._node.world
        task = asyncio.current_task()
        assert task is not None
        world.transactions.add(task)
        try:
            if await node.point("begin") is Fault.REFUSED:
                raise UnavailableError("simulated: the database is away")
            async with self._real.begin() as connection:
                world.holder = task
                try:
                    yield connection
                    await self._before_commit()
                finally:
                    world.holder = None
            await self._after_commit()
        finally:
            world.transactions.discard(task)
            world.stir.set()

    def execution_options(self, **_: object) -> "SimEngine":
        """See ``AsyncEngine.execution_options``: a statement that commits by itself has the faults of a commit."""
        return self

    connect = begin

    async def _before_commit(self) -> None:
        match await self._node.point("commit"):
            case Fault.CRASH_BEFORE:
                await self._node.crash()
            case Fault.REFUSED:
                raise UnavailableError("simulated: the database went away before the commit")
            case _:
                return

    async def _after_commit(self) -> None:
        match await self._node.point("committed"):
            case Fault.CRASH_AFTER:
                await self._node.crash()
            case Fault.ANSWER_LOST:
                raise UnavailableError("simulated: the answer to the commit was lost")
            case _:
                return


class SimDelivery:
    """A delivery whose settling may go wrong."""

    def __init__(self, node: Node, queue: Queue, real: Delivery) -> None:
        self._node = node
        self._queue = queue
        self._real = real
        self.body = real.body
        self.headers = real.headers
        self.delivery_count = real.delivery_count
        self.reply_to = real.reply_to
        self.correlation_id = real.correlation_id

    async def ack(self, *, multiple: bool = False) -> None:
        """See the port."""
        await self._settle("ack", lambda: self._real.ack(multiple=multiple))

    async def requeue(self) -> None:
        """See the port."""
        await self._settle("requeue", self._real.requeue)

    async def reject(self, reason: str) -> None:
        """See the port."""
        await self._settle("reject", lambda: self._real.reject(reason))

    async def _settle(self, kind: str, act: Callable[[], Awaitable[None]]) -> None:
        fault = await self._node.point(kind, self._queue.name)
        if fault is Fault.CRASH_BEFORE:
            await self._node.crash()
        if fault is Fault.STALE:
            self._node.bus.lose(self._queue)
        if kind == "ack" and self._node.region is not None:
            self._node.world.task_acked(self._node, self.body)
        await act()
        if fault is Fault.CRASH_AFTER:
            await self._node.crash()


class SimBus:
    """One service's connection to the broker, with its faults."""

    def __init__(self, node: Node, broker: MemoryBroker) -> None:
        self._node = node
        self._broker = broker
        self._real = MemoryBus(broker)
        self._consumptions: dict[str, list[MemoryConsumption]] = {}

    @property
    def publishable(self) -> bool:
        """See the port."""
        return self._real.publishable

    async def publish(self, *messages: Message) -> None:
        """See the port."""
        losses = self._node.losses
        fault = await self._node.point("publish", ", ".join(dict.fromkeys(m.kind for m in messages)))
        if fault is Fault.CRASH_BEFORE:
            await self._node.crash()
        if fault is Fault.REFUSED or self._node.losses != losses:
            raise UnavailableError("simulated: the broker is away")
        sent = messages
        if fault in (Fault.CRASH_BETWEEN, Fault.SLOW):
            sent = messages[: self._node.world.random.randrange(len(messages))]
        await self._send(sent)
        if fault in (Fault.CRASH_BETWEEN, Fault.CRASH_AFTER):
            await self._node.crash()
        if fault is Fault.ANSWER_LOST:
            raise UnconfirmedError("simulated: the confirm was lost")
        if fault is Fault.SLOW:
            await self._node.world.clock.sleep(self._node.world.random.uniform(1, 9))
            await self._node.going_on("publish")
            if self._node.losses != losses:
                raise UnconfirmedError("simulated: the connection was lost before everything was confirmed")
            await self._send(messages[len(sent) :])

    async def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._node.world.published(self._node, message)
        await self._real.publish(*messages)

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """See the port."""
        await self._node.point("publish", f"reply {message.kind}")
        await self._real.reply(delivery, message)

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> Consumption:
        """See the port."""

        def hand_over(delivery: Delivery) -> None:
            def handle() -> None:
                if not (self._node.dead or self._node.dying):
                    self._node.context.run(handler, SimDelivery(self._node, queue, delivery))

            self._node.receive(handle)

        consumption = await self._real.consume(queue, prefetch=prefetch, handler=hand_over)
        self._consumptions.setdefault(queue.name, []).append(consumption)
        return consumption

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> Following:
        """See the port."""

        def read(body: bytes) -> None:
            self._node.receive(lambda: handle(body))

        def handle(body: bytes) -> None:
            message = decode(body)
            if isinstance(message, JobCancelled):
                self._node.cancelled_jobs.add(message.job_id)
            self._node.context.run(handler, body)

        before = self._node.world.cancellations()
        following = await self._real.follow(stream, read)
        if missed := before - self._node.cancelled_jobs:
            self._node.world.violated(f"{self._node.name} passed the fence without reading of {sorted(missed)}")
        self._node.fenced = True
        return following

    async def depth(self, queue: Queue) -> int:
        """See the port."""
        losses = self._node.losses
        if await self._node.point("depth", queue.name) is Fault.REFUSED or self._node.losses != losses:
            raise UnavailableError("simulated: the broker is away")
        return await self._real.depth(queue)

    def lose(self, queue: Queue) -> None:
        """Close the channel of a queue's consumers: what is unsettled goes back."""
        self.excuse()
        for consumption in self._consumptions.get(queue.name, ()):
            consumption.lose()

    def excuse(self) -> None:
        """Whatever is here unsettled will be delivered to somebody else, whether or not it is being worked on."""
        if self._node.region is not None:
            for consumption in chain.from_iterable(self._consumptions.values()):
                for _, stored in consumption._unsettled.values():
                    self._node.world.excuse(stored.body)

    def drop(self) -> Callable[[], None]:
        """The broker drops the connections of a process that is stopped; returns what makes them again.

        What was in the sockets for a queue's consumer is lost with them and delivered again.
        """
        self.excuse()
        self._node.losses += 1
        dropped = [(each, each._prefetch) for each in chain.from_iterable(self._consumptions.values())]
        for consumption, _ in dropped:
            consumption._prefetch = 0
            consumption.lose()

        def attach() -> None:
            for consumption, prefetch in dropped:
                consumption._prefetch = prefetch

        return attach

    async def close(self) -> None:
        """See the port; also what the broker does for a client that died."""
        await self._real.close()
