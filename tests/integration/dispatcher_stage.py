"""A dispatcher on the memory bus and a real database, with everything around it played by one actor.

The actor takes tasks as executors would and keeps the ledger as results would, but only when it is told to.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.admission import Admission
from dispatcher.app import running
from dispatcher.batches import BatchPublisher
from dispatcher.handlers import Handlers
from dispatcher.pace import Pace
from dispatcher.publishing import Publisher
from dispatcher.settings import Settings
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.bus.memory import MemoryBroker, MemoryBus, Reply
from parallax.bus.port import Bus, Consumption, Delivery, Following
from parallax.bus.serve import Serving, serve
from parallax.catalog import Catalog, parse_catalog
from parallax.clock import Clock, SystemClock
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    CancelJob,
    CloseBatch,
    ExecutionFinished,
    ExecutionTask,
    InspectBatch,
    JobFinished,
    Message,
    decode,
)
from parallax.contracts.outcomes import Counts, ExecutionStatus
from parallax.contracts.plan import BatchPlan, BatchRef
from parallax.contracts.routing import BATCHES, EVENTS, FACTS, SUBMISSIONS, Queue, executions
from parallax.db.migrations import migrate
from parallax.errors import UnconfirmedError
from parallax.worker.process import Worker
from tests.fakes.clock import ManualClock

PATIENCE_S = 30.0
"""How long a test waits for what must happen: far longer than it takes, for loaded machines."""

CATALOG: Catalog = parse_catalog(
    {
        "regions": {
            "us": {"name": "the United States", "endpoint": "openai+http://127.0.0.1:1/v1"},
            "eu": {"name": "the European Union", "endpoint": "openai+http://127.0.0.1:1/v1"},
        },
        "models": {
            "tiny": {"upstream": "tiny", "regions": ["us", "eu"]},
            "large": {"upstream": "large", "regions": ["us"]},
        },
    },
    source="test",
)

M = TypeVar("M", bound=Message)


def job_document(questions: int = 3, **changes: Any) -> dict[str, Any]:
    """A small valid job."""
    return {
        "name": "test",
        "questions": [{"id": f"q{index}", "text": f"Question {index}?"} for index in range(questions)],
        "models": [{"id": "tiny"}],
        "regions": ["us", "eu"],
        **changes,
    }


class BusInBetween:
    """A bus through which a test sees what is published; what it does about that is up to subclasses."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def published(self, message: Message) -> None:
        """Called after a message was published, before its publisher goes on."""

    @property
    def publishable(self) -> bool:
        """Pass on."""
        return self._bus.publishable

    async def publish(self, *messages: Message) -> None:
        """Publish, then tell about each message."""
        await self._bus.publish(*messages)
        for message in messages:
            await self.published(message)

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """Pass on."""
        await self._bus.reply(delivery, message)

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> Consumption:
        """Pass on."""
        return await self._bus.consume(queue, prefetch=prefetch, handler=handler)

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> Following:
        """Pass on."""
        return await self._bus.follow(stream, handler)

    async def depth(self, queue: Queue) -> int:
        """Pass on."""
        return await self._bus.depth(queue)

    async def close(self) -> None:
        """Pass on."""
        await self._bus.close()


class BreakingBus(BusInBetween):
    """Loses its connection right after publishing a message of one kind, once for each batch: nobody knows whether
    what was published arrived."""

    def __init__(self, bus: Bus, kind: type[Message]) -> None:
        super().__init__(bus)
        self._kind = kind
        self._broken: set[str] = set()

    @property
    def failures(self) -> int:
        """How often the connection was lost."""
        return len(self._broken)

    async def published(self, message: Message) -> None:
        """Fail the first time."""
        name = f"{message.kind} {getattr(message, 'batch', '')}"
        if isinstance(message, self._kind) and name not in self._broken:
            self._broken.add(name)
            raise UnconfirmedError("the connection was lost after the publish")


class HesitantBus(BusInBetween):
    """Waits after publishing a message of one kind, until it is told to go on."""

    def __init__(self, bus: Bus, kind: type[Message]) -> None:
        super().__init__(bus)
        self._kind = kind
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()

    async def published(self, message: Message) -> None:
        """Wait."""
        if isinstance(message, self._kind):
            self.waiting.set()
            await self.go_on.wait()


class Stage:
    """The world around the dispatchers under test."""

    def __init__(self, broker: MemoryBroker, engine: AsyncEngine, clock: ManualClock) -> None:
        self.broker = broker
        self.engine = engine
        self.clock = clock
        self.bus = MemoryBus(broker)
        self.said: list[Message] = []
        """Everything dispatchers announced, and every task that was taken, in order."""
        self.facts: dict[tuple[str, str, int], dict[UUID, ExecutionStatus]] = {}
        self.outcome: Callable[[ExecutionTask], ExecutionStatus | None] = lambda _task: ExecutionStatus.COMPLETED
        """What becomes of a task; ``None`` loses it."""
        self._changed = asyncio.Event()
        self._servings: dict[str, Serving] = {}
        self._requests = 0

    async def start(self) -> None:
        """Listen to announcements, closings and facts; take no task yet."""
        await self._serve(EVENTS, self._on_event)
        await self._serve(BATCHES, self._on_batch)
        await self._serve(FACTS, self._on_fact)

    async def run_executors(self, *regions: str) -> None:
        """Take the tasks of some regions from now on; of all when none is named."""
        for region in regions or tuple(CATALOG.regions):
            await self._serve(executions(region), self._on_task)

    async def _serve(self, queue: Queue, handler: Callable[[Delivery], Any]) -> None:
        self._servings[queue.name] = await serve(self.bus, queue, prefetch=50, handler=handler, clock=SystemClock())

    async def close(self) -> None:
        """Stop."""
        for serving in self._servings.values():
            await serving.close()
        await self.bus.close()

    # --- what tests do

    async def submit(self, job_id: str, document: dict[str, Any] | None = None) -> Message:
        """Submit a job and return the answer."""
        body = {"kind": "submit_job", "version": 1, "job_id": job_id, "job": document or job_document()}
        return await self.submit_raw(json.dumps(body).encode())

    async def submit_raw(self, body: bytes) -> Message:
        """Submit any bytes and return the answer."""
        self._requests += 1
        reply_to = f"replies.{self._requests}"
        replies: asyncio.Queue[Reply] = self.bus.replies(reply_to)
        await self.bus.publish_raw(SUBMISSIONS, body, reply_to=reply_to, correlation_id="c1")
        async with asyncio.timeout(PATIENCE_S):
            reply = await replies.get()
        assert reply.correlation_id == "c1"
        return decode(reply.body)

    async def cancel(self, job_id: str, reason: str = "enough") -> None:
        """Ask to stop a job."""
        await self.bus.publish(CancelJob(job_id=job_id, reason=reason))

    async def until_rows(self, table: str, count: int, *, where: str = "true", turning_s: float = 0.0) -> None:
        """Wait until a table has so many rows, turning the clock all the while."""
        statement = text(f"SELECT count(*) FROM {table} WHERE {where}")
        async with asyncio.timeout(PATIENCE_S), self.engine.connect() as connection:
            while (await connection.execute(statement)).scalar_one() != count:
                await connection.rollback()
                self.clock.advance(turning_s)
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that was said makes the condition true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_turning(self, condition: Callable[[], bool], *, seconds: float = 1.0) -> None:
        """The same, turning the clock all the while."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.clock.advance(seconds)
                await asyncio.sleep(0.01)

    async def finished(self, job_id: str) -> JobFinished:
        """Wait for the end of a job."""
        await self.until(lambda: bool(self.heard(JobFinished, job_id)))
        return self.heard(JobFinished, job_id)[-1]

    def heard(self, kind: type[M], job_id: str | None = None) -> list[M]:
        """What was said of one kind, about one job."""
        return [m for m in self.said if isinstance(m, kind) and (job_id is None or _job_of(m) == job_id)]

    # --- executors and results

    async def _on_event(self, delivery: Delivery) -> None:
        self._note(decode(delivery.body))

    async def _on_task(self, delivery: Delivery) -> None:
        task = ExecutionTask.model_validate_json(delivery.body)
        status = self.outcome(task)
        self._note(task)
        if status is not None:
            await self._record(task.batch, {task.execution_id: status}, task.batch_size)

    async def _on_fact(self, delivery: Delivery) -> None:
        message = decode(delivery.body)
        self._note(message)
        if isinstance(message, ExecutionFinished):
            await self._record(message.batch, {message.execution_id: message.status}, message.batch_size)

    async def _on_batch(self, delivery: Delivery) -> None:
        message = decode(delivery.body)
        self._note(message)
        match message:
            case CloseBatch(batch=batch, status=status):
                await self._record(batch.ref, dict.fromkeys(batch.execution_ids(), status), len(batch.cells))
            case InspectBatch(batch=batch, token=token):
                await self._inspect(batch, token)
            case _:
                raise AssertionError(message)

    async def _record(self, ref: BatchRef, facts: dict[UUID, ExecutionStatus], size: int) -> None:
        recorded = self.facts.setdefault((ref.job_id, ref.lane, ref.question_index), {})
        for execution, status in facts.items():
            recorded.setdefault(execution, status)
        if len(recorded) == size:
            await self.bus.publish(BatchCompleted(batch=ref, counts=_counts(recorded.values())))

    async def _inspect(self, batch: BatchPlan, token: str | None) -> None:
        """Results knows at once what every executor holds: nothing."""
        ref = batch.ref
        recorded = self.facts.setdefault((ref.job_id, ref.lane, ref.question_index), {})
        missing = tuple(cell for execution, cell in batch.execution_ids().items() if execution not in recorded)
        if missing:
            await self.bus.publish(
                BatchIncomplete(batch=ref, recorded=len(recorded), running=0, missing=missing, token=token)
            )
        else:
            await self.bus.publish(BatchCompleted(batch=ref, counts=_counts(recorded.values())))

    def _note(self, message: Message) -> None:
        self.said.append(message)
        self._changed.set()


def _counts(statuses: Iterable[ExecutionStatus]) -> Counts:
    ended = list(statuses)
    return Counts(**{status.value: ended.count(status) for status in ExecutionStatus})


def _job_of(message: Message) -> str | None:
    batch = getattr(message, "batch", None)
    if isinstance(batch, BatchPlan):
        return batch.ref.job_id
    found: str | None = batch.job_id if batch is not None else getattr(message, "job_id", None)
    return found


@asynccontextmanager
async def staged(engine: AsyncEngine, *, broker: MemoryBroker | None = None) -> AsyncIterator[Stage]:
    """A stage without a dispatcher, on a migrated database."""
    await migrate(engine, package="dispatcher", schema="dispatcher")
    stage = Stage(broker or MemoryBroker(CATALOG.regions), engine, ManualClock())
    await stage.start()
    try:
        yield stage
    finally:
        await stage.close()


@asynccontextmanager
async def dispatching(
    stage: Stage, *, settings: Settings | None = None, bus: Bus | None = None, replicas: int = 1
) -> AsyncIterator[None]:
    """Dispatchers at work on a stage."""
    async with AsyncExitStack() as stack:
        for _ in range(replicas):
            client = bus or MemoryBus(stage.broker)
            stack.push_async_callback(client.close)
            await stack.enter_async_context(
                running(
                    bus=client,
                    engine=stage.engine,
                    catalog=CATALOG,
                    clock=stage.clock,
                    settings=settings or Settings(),
                )
            )
        yield


def bare_handlers(
    bus: Bus, engine: AsyncEngine, clock: Clock, *, worker: Worker | None = None, pace: Pace | None = None
) -> Handlers:
    """Handlers without consumers and without the timer, to be called by hand."""
    store, steps = Store(engine), Steps(clock, inspect_after_s=60)
    batches = BatchPublisher(bus=bus, store=store, steps=steps, clock=clock, pace=pace or Pace())
    publisher = Publisher(bus=bus, store=store, steps=steps, batches=batches, clock=clock)
    admission = Admission(store, steps, publisher, max_active_jobs=64)
    return Handlers(
        bus=bus,
        store=store,
        steps=steps,
        publisher=publisher,
        admission=admission,
        catalog=CATALOG,
        clock=clock,
        worker=worker,
    )


async def submit_by_hand(bus: MemoryBus, handlers: Handlers, job_id: str, document: dict[str, Any]) -> None:
    """Have a job accepted and its first batches opened."""
    deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
    consumption = await bus.consume(SUBMISSIONS, prefetch=1, handler=deliveries.put_nowait)
    await bus.publish_raw(SUBMISSIONS, json.dumps({"job_id": job_id, "job": document}).encode())
    delivery = await deliveries.get()
    await handlers.submit(delivery)
    await delivery.ack()
    await consumption.close()
