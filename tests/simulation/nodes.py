"""A service in the simulation: its tasks, its connections, and how it dies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar, copy_context
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
        """Ask the service to stop in an orderly way."""
        self._leave.set()

    @property
    def ended(self) -> bool:
        """Whether the service is gone."""
        return self.dead or (self.root is not None and self.root.done())

    async def point(self, kind: str, detail: str = "") -> Fault | None:
        """A side effect is about to happen (or just happened): the moment for a fault.

        Returns:
            The fault that the caller has to act out, if any; crashes never return.
        """
        if self.dead:
            raise asyncio.CancelledError
        if self.dying:
            await self._freeze()
        fault = self.world.faults.at(kind)
        if fault is not None:
            self.world.tell(f"{fault.value} at {kind} {detail}", self)
        return fault

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
        fault = await self._node.point("publish", ", ".join(dict.fromkeys(m.kind for m in messages)))
        if fault is Fault.CRASH_BEFORE:
            await self._node.crash()
        if fault is Fault.REFUSED:
            raise UnavailableError("simulated: the broker is away")
        sent = messages
        if fault is Fault.CRASH_BETWEEN:
            sent = messages[: self._node.world.random.randrange(len(messages))]
        for message in sent:
            self._node.world.published(self._node, message)
        await self._real.publish(*sent)
        if fault in (Fault.CRASH_BETWEEN, Fault.CRASH_AFTER):
            await self._node.crash()
        if fault is Fault.ANSWER_LOST:
            raise UnconfirmedError("simulated: the confirm was lost")

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """See the port."""
        await self._node.point("publish", f"reply {message.kind}")
        await self._real.reply(delivery, message)

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> Consumption:
        """See the port."""

        def hand_over(delivery: Delivery) -> None:
            if not (self._node.dead or self._node.dying):
                self._node.context.run(handler, SimDelivery(self._node, queue, delivery))

        consumption = await self._real.consume(queue, prefetch=prefetch, handler=hand_over)
        self._consumptions.setdefault(queue.name, []).append(consumption)
        return consumption

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> Following:
        """See the port."""

        def read(body: bytes) -> None:
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
        if await self._node.point("depth", queue.name) is Fault.REFUSED:
            raise UnavailableError("simulated: the broker is away")
        return await self._real.depth(queue)

    def lose(self, queue: Queue) -> None:
        """Close the channel of a queue's consumers: what is unsettled goes back."""
        for consumption in self._consumptions.get(queue.name, ()):
            consumption.lose()

    async def close(self) -> None:
        """See the port; also what the broker does for a client that died."""
        await self._real.close()
