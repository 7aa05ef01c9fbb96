"""An executor on the memory bus: publishes tasks to it and collects what it publishes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from executor import app
from executor.endpoints.port import Endpoint
from executor.settings import Settings
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.bus.port import Bus, Consumption, Delivery, Following
from parallax.catalog import Catalog, parse_catalog
from parallax.clock import SystemClock
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.ids import execution_id
from parallax.contracts.job import Limits, Parameters
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, JobCancelled, Message
from parallax.contracts.outcomes import ChatMessage, Reason
from parallax.contracts.plan import BatchRef
from parallax.contracts.routing import FACTS, HEARTBEATS, Queue, region_queues
from parallax.errors import StaleDeliveryError, UnavailableError, UnconfirmedError
from parallax.health import Health

PATIENCE_S = 30.0
QUICK = Settings(
    region="us",
    executor_id="executor-1",
    budget=4,
    heartbeat_s=0.05,
    grace_s=5.0,
    retry_base_s=0.01,
    retry_cap_s=0.05,
    breaker_base_s=0.02,
    breaker_cap_s=0.1,
)
"""Short waits, so that tests are quick; what they check does not depend on them."""


def catalog(*, cold_start_s: float = 0.0, also: Sequence[str] = ()) -> Catalog:
    """Two regions, two models; ``also`` names further models of both regions."""
    endpoint = {"endpoint": "openai+http://127.0.0.1:1/v1", "cold_start_s": cold_start_s}
    return parse_catalog(
        {
            "regions": {"us": {"name": "the United States", **endpoint}, "eu": {"name": "Europe", **endpoint}},
            "models": {
                "mock": {"upstream": "upstream/mock", "regions": ["us", "eu"], "revision": "r1"},
                "european": {"upstream": "upstream/european", "regions": ["eu"]},
                **{name: {"upstream": f"upstream/{name}", "regions": ["us", "eu"]} for name in also},
            },
        },
        source="test",
    )


def task(
    question: str = "q1",
    *,
    job: str = "job-1",
    model: str = "mock",
    region: str = "us",
    sample: int = 0,
    text: str | None = None,
    deadline_s: float = 600.0,
    parameters: Parameters | None = None,
    limits: Mapping[str, float] | None = None,
) -> ExecutionTask:
    """A task as the dispatcher publishes it."""
    now = datetime.now(UTC)
    return ExecutionTask(
        execution_id=execution_id(job, question, model, region, sample),
        batch=BatchRef(job_id=job, lane="all", question_index=0),
        batch_size=1,
        question_id=question,
        model_id=model,
        model=model,
        region=region,
        sample=sample,
        messages=(
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", content=text or f"Question {question}?"),
        ),
        parameters=parameters or Parameters(),
        limits=Limits.model_validate({"batch_deadline_s": deadline_s, **(limits or {})}, strict=False),
        published_at=now,
        deadline_at=now + timedelta(seconds=deadline_s),
    )


@dataclass(slots=True, eq=False)
class FlakyFollowing:
    """A following that can fall behind."""

    inner: Following
    bus: "FlakyBus"

    @property
    def live(self) -> bool:
        """Whether it keeps up."""
        return self.inner.live and not self.bus.behind

    async def close(self) -> None:
        """Pass on."""
        await self.inner.close()


@dataclass(slots=True, eq=False)
class FlakyBus:
    """A client of the bus that can be away."""

    inner: MemoryBus
    away: bool = False
    unconfirmed: bool = False
    """Whether tasks are delivered, but their confirms are lost."""
    behind: bool = False
    """Whether the cancellation stream is not read up to its end just now."""
    refused: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_refused(self, count: int) -> None:
        """Wait until so many publications were refused."""
        async with asyncio.timeout(PATIENCE_S):
            while self.refused < count:
                self._changed.clear()
                await self._changed.wait()

    @property
    def publishable(self) -> bool:
        """Pass on."""
        return self.inner.publishable and not self.away

    async def publish(self, *messages: Message) -> None:
        """Publish, unless the bus is away."""
        if self.away:
            self.refused += 1
            self._changed.set()
            raise UnavailableError("the bus is away")
        await self.inner.publish(*messages)
        if self.unconfirmed and any(isinstance(message, ExecutionTask) for message in messages):
            self.refused += 1
            self._changed.set()
            raise UnconfirmedError("the confirm was lost")

    async def reply(self, delivery: Delivery, message: Message) -> None:
        """Pass on."""
        await self.inner.reply(delivery, message)

    async def consume(self, queue: Queue, *, prefetch: int, handler: Callable[[Delivery], None]) -> Consumption:
        """Pass on."""
        return await self.inner.consume(queue, prefetch=prefetch, handler=handler)

    async def follow(self, stream: Queue, handler: Callable[[bytes], None]) -> Following:
        """Pass on."""
        return FlakyFollowing(await self.inner.follow(stream, handler), self)

    async def depth(self, queue: Queue) -> int:
        """Pass on."""
        return await self.inner.depth(queue)

    async def close(self) -> None:
        """Pass on."""
        await self.inner.close()


@dataclass(slots=True, eq=False)
class ExecutorStage:
    """A broker, and what executors have published to it."""

    broker: MemoryBroker = field(default_factory=lambda: MemoryBroker(["us", "eu"]))
    facts: list[ExecutionFinished] = field(default_factory=list)
    heartbeats: list[ExecutorHeartbeat] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _acks: set[asyncio.Task[None]] = field(default_factory=set)
    _bus: MemoryBus | None = None

    @property
    def bus(self) -> MemoryBus:
        """The bus of the test itself."""
        if self._bus is None:
            self._bus = MemoryBus(self.broker)
        return self._bus

    async def listen(self) -> None:
        """Collect facts and heartbeats from now on."""
        await self.bus.consume(FACTS, prefetch=1000, handler=self._take_fact)
        await self.bus.consume(HEARTBEATS, prefetch=1000, handler=self._take_heartbeat)

    @asynccontextmanager
    async def executor(
        self,
        endpoint: Endpoint,
        settings: Settings = QUICK,
        *,
        bus: Bus | None = None,
        cold_start_s: float = 0.0,
        also: Sequence[str] = (),
    ) -> AsyncIterator[Health]:
        """An executor works while the block runs."""
        client = bus or MemoryBus(self.broker)
        async with app.running(
            bus=client,
            catalog=catalog(cold_start_s=cold_start_s, also=also),
            endpoint=endpoint,
            clock=SystemClock(),
            settings=settings,
            random=Random(7),
        ) as health:
            yield health
        await client.close()

    async def submit(self, *tasks: ExecutionTask) -> None:
        """Publish tasks."""
        await self.bus.publish(*tasks)

    async def cancel(self, job: str, code: str = "cancelled") -> None:
        """Append to the cancellation stream."""
        reason = Reason(code=code, message=f"{code} by the test")
        await self.bus.publish(JobCancelled(job_id=job, reason=reason, cancelled_at=datetime.now(UTC)))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was collected fulfils a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def until_facts(self, count: int) -> list[ExecutionFinished]:
        """Wait for so many facts."""
        await self.until(lambda: len(self.facts) >= count)
        return self.facts

    async def fact_of(self, submitted: ExecutionTask) -> ExecutionFinished:
        """Publish a task and wait for its fact."""
        await self.submit(submitted)
        await self.until(lambda: any(fact.execution_id == submitted.execution_id for fact in self.facts))
        return next(fact for fact in self.facts if fact.execution_id == submitted.execution_id)

    async def held(self, region: str = "us") -> set[UUID]:
        """The executions in the last heartbeat that was sent after this call."""
        seen = len(self.heartbeats)
        await self.until(lambda: len(self.heartbeats) > seen + 1)
        return {r.execution_id for h in self.heartbeats[-1:] if h.region == region for r in h.running}

    async def settled(self, region: str = "us", models: Sequence[str] = ("mock",)) -> bool:
        """Whether nothing waits in the region's queues and closing every consumer brings nothing back."""
        self.broker.drop_connections()
        return sum([await self.bus.depth(queue) for queue in region_queues(region, models)]) == 0

    def _take_fact(self, delivery: Delivery) -> None:
        self.facts.append(ExecutionFinished.model_validate_json(delivery.body))
        self._ack(delivery)

    def _take_heartbeat(self, delivery: Delivery) -> None:
        self.heartbeats.append(ExecutorHeartbeat.model_validate_json(delivery.body))
        self._ack(delivery)

    def _ack(self, delivery: Delivery) -> None:
        task = asyncio.create_task(_settle(delivery))
        self._acks.add(task)
        task.add_done_callback(self._acks.discard)
        self.changed.set()


async def _settle(delivery: Delivery) -> None:
    with contextlib.suppress(StaleDeliveryError):  # the test dropped the connections; it comes again
        await delivery.ack()


@asynccontextmanager
async def executor_stage() -> AsyncIterator[ExecutorStage]:
    """A stage that listens."""
    stage = ExecutorStage()
    await stage.listen()
    yield stage
    await stage.bus.close()
