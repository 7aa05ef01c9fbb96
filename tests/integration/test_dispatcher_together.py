"""Completions that arrive while others are written are written together, and no job suffers from another."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.handlers import Handlers
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.bus.port import Bus, Delivery
from parallax.clock import SystemClock
from parallax.contracts.messages import BatchCompleted, BatchOpened, CancelJob, ExecutionTask, Message
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.contracts.routing import executions
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from parallax.errors import PoisonError
from tests.harness.results import blocked, eventually
from tests.integration.dispatcher_stage import (
    CATALOG,
    BusInBetween,
    bare_handlers,
    job_document,
    submit_by_hand,
)
from tests.integration.test_dispatcher_cost import statements

JOBS = ("busy", "a", "b", "c")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


@pytest.fixture
async def bus(engine: AsyncEngine) -> MemoryBus:
    """A bus of a dispatcher to which four jobs of five questions were given."""
    await migrate(engine, package="dispatcher", schema="dispatcher")
    bus = MemoryBus(MemoryBroker(CATALOG.regions))
    handlers = bare_handlers(bus, engine, SystemClock())
    for job_id in JOBS:
        await submit_by_hand(bus, handlers, job_id, job_document(5))
    return bus


def completed(job_id: str, index: int = 0, count: int = 2) -> BatchCompleted:
    ref = BatchRef(job_id=job_id, lane="all", question_index=index)
    return BatchCompleted(batch=ref, counts=Counts(completed=count))


async def open_questions(engine: AsyncEngine) -> dict[str, int]:
    """The index of the open batch of each job."""
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT id, CAST(state AS text) AS state FROM dispatcher.jobs"))
        return {row.id: json.loads(row.state)["lanes"][0]["batch"]["index"] for row in rows}


@asynccontextmanager
async def transactions_waiting(engine: AsyncEngine) -> AsyncIterator[None]:
    """Whoever wants to read a job waits until the end of the block."""
    async with engine.connect() as another:
        await another.execute(text("LOCK TABLE dispatcher.jobs IN EXCLUSIVE MODE"))
        yield
        await another.rollback()


async def settle_while_busy(
    bus: Bus, engine: AsyncEngine, messages: list[BatchCompleted], *, count: int = 2
) -> list[BaseException | None]:
    """Let these arrive while the completion of another job is being written; what became of each."""
    handlers = bare_handlers(bus, engine, SystemClock())
    async with transactions_waiting(engine):
        busy = asyncio.create_task(handlers.batch_completed(completed("busy", count=count)))
        await blocked(engine, 1)
        arriving = [asyncio.create_task(handlers.batch_completed(message)) for message in messages]
        await asyncio.sleep(0)
    await busy
    return await asyncio.gather(*arriving, return_exceptions=True)


async def test_what_arrives_together_is_written_together(bus: MemoryBus, engine: AsyncEngine) -> None:
    with statements(engine) as seen:
        assert await settle_while_busy(bus, engine, [completed(job_id) for job_id in "abc"]) == [None] * 3
    assert sum(statement.startswith("UPDATE dispatcher.jobs") for statement in seen) == 2
    assert await open_questions(engine) == dict.fromkeys(JOBS, 1)


async def test_an_impossible_completion_spares_its_neighbours(bus: MemoryBus, engine: AsyncEngine) -> None:
    a, b, c = await settle_while_busy(bus, engine, [completed("a"), completed("b", count=7), completed("c")])
    assert (a, c) == (None, None)
    assert isinstance(b, PoisonError)
    assert await open_questions(engine) == {"busy": 1, "a": 1, "b": 0, "c": 1}


async def test_the_next_completion_of_a_job_builds_on_the_one_before(bus: MemoryBus, engine: AsyncEngine) -> None:
    """However early it is."""
    await settle_while_busy(bus, engine, [completed("a", 0), completed("a", 1), completed("b", 0)])
    assert await open_questions(engine) == {"busy": 1, "a": 2, "b": 1, "c": 0}


async def test_a_job_that_somebody_else_works_on_keeps_nobody_waiting(bus: MemoryBus, engine: AsyncEngine) -> None:
    handlers = bare_handlers(bus, engine, SystemClock())
    async with engine.connect() as another, asyncio.timeout(30):
        await another.execute(text("SELECT FROM dispatcher.jobs WHERE id = 'a' FOR UPDATE"))
        a = asyncio.create_task(handlers.batch_completed(completed("a")))
        await asyncio.gather(*(handlers.batch_completed(completed(job_id)) for job_id in "bc"))
        assert await open_questions(engine) == {"busy": 0, "a": 0, "b": 1, "c": 1}
        assert not a.done()
        await another.rollback()
        await a
    assert await open_questions(engine) == {"busy": 0, "a": 1, "b": 1, "c": 1}


class BlockedFor(BusInBetween):
    """Publishes nothing of one job: it waits until it may go on."""

    def __init__(self, bus: MemoryBus, job_id: str) -> None:
        super().__init__(bus)
        self._job_id = job_id
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()

    async def publish(self, *messages: Message) -> None:
        if any(isinstance(message, BatchOpened) and message.batch.job_id == self._job_id for message in messages):
            self.waiting.set()
            await self.go_on.wait()
        await super().publish(*messages)


async def test_a_job_that_cannot_be_published_keeps_nobody_waiting(bus: MemoryBus, engine: AsyncEngine) -> None:
    """Neither the jobs that were written with it nor what else arrives of itself: it holds no lock and no turn."""
    blocked_bus = BlockedFor(bus, "b")
    arriving = asyncio.create_task(settle_while_busy(blocked_bus, engine, [completed(job_id) for job_id in "abc"]))
    await blocked_bus.waiting.wait()
    handlers = bare_handlers(blocked_bus, engine, SystemClock())

    async def all_moved() -> bool:
        return await open_questions(engine) == dict.fromkeys(JOBS, 1)

    await eventually(all_moved)
    async with asyncio.timeout(30):
        await asyncio.gather(*(handlers.batch_completed(completed(job_id)) for job_id in JOBS))
        await handlers.cancel(CancelJob(job_id="b"))
    assert not arriving.done()
    blocked_bus.go_on.set()
    assert await arriving == [None] * 3


async def test_a_group_that_cannot_go_out_is_not_published_twice(engine: AsyncEngine) -> None:
    """The region of one of its jobs has left the installation, after the job had begun."""
    await migrate(engine, package="dispatcher", schema="dispatcher")
    bus = MemoryBus(MemoryBroker(["us"]))
    handlers = bare_handlers(bus, engine, SystemClock())
    stays = job_document(2, regions=["us"])
    leaves = job_document(
        2,
        only=[
            {"question_id": "q0", "model_id": "tiny", "region": "us"},
            {"question_id": "q1", "model_id": "tiny", "region": "eu"},
        ],
    )
    for job_id, document in {"busy": stays, "a": stays, "b": leaves, "c": stays}.items():
        await submit_by_hand(bus, handlers, job_id, document)
    assert await settle_while_busy(bus, engine, [completed(job_id, count=1) for job_id in "abc"], count=1) == [None] * 3
    tasks = await taken(bus)
    assert Counter(tasks) == dict.fromkeys([(job, 0) for job in JOBS] + [("busy", 1), ("a", 1), ("c", 1)], 1)


async def taken(bus: MemoryBus) -> list[tuple[str, int]]:
    """The job and question of every task in the queue of a region."""
    deliveries: list[Delivery] = []
    consumption = await bus.consume(executions("us"), prefetch=1000, handler=deliveries.append)
    await asyncio.sleep(0.05)
    await consumption.close()
    batches = [ExecutionTask.model_validate_json(delivery.body).batch for delivery in deliveries]
    return [(batch.job_id, batch.question_index) for batch in batches]


async def test_whoever_waits_goes_on_when_the_one_whose_turn_it_is_leaves(bus: MemoryBus, engine: AsyncEngine) -> None:
    handlers: Handlers = bare_handlers(bus, engine, SystemClock())
    async with transactions_waiting(engine):
        leader, a, b, c = (asyncio.create_task(handlers.batch_completed(completed(job_id))) for job_id in JOBS)
        await blocked(engine, 1)
        leader.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(a, b, c)
    assert leader.cancelled()
    assert await open_questions(engine) == {"busy": 0, "a": 1, "b": 1, "c": 1}
