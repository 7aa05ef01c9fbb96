"""Completions that arrive while others are written are written together, and no job suffers from another."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.handlers import Handlers
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.messages import BatchCompleted, BatchOpened, Message
from parallax.contracts.outcomes import Counts
from parallax.contracts.plan import BatchRef
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from parallax.errors import PoisonError, UnavailableError
from tests.integration.dispatcher_stage import (
    CATALOG,
    BusInBetween,
    HesitantBus,
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


async def settle_while_busy(
    bus: MemoryBus, engine: AsyncEngine, messages: list[BatchCompleted]
) -> list[BaseException | None]:
    """Let these arrive while the completion of another job is being written; what became of each."""
    hesitant = HesitantBus(bus, BatchOpened)
    handlers = bare_handlers(hesitant, engine, SystemClock())
    busy = asyncio.create_task(handlers.batch_completed(completed("busy")))
    await hesitant.waiting.wait()
    arriving = [asyncio.create_task(handlers.batch_completed(message)) for message in messages]
    await asyncio.sleep(0)
    hesitant.go_on.set()
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
    """It is early: a crash before the commit published the second batch already."""
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
    """Publishes nothing of one job: it waits until it is told to fail."""

    def __init__(self, bus: MemoryBus, job_id: str) -> None:
        super().__init__(bus)
        self._job_id = job_id
        self.waiting = asyncio.Event()
        self.fail = asyncio.Event()

    async def published(self, message: Message) -> None:
        if isinstance(message, BatchOpened) and message.batch.job_id == self._job_id:
            self.waiting.set()
            await self.fail.wait()
            raise UnavailableError("the queue of a region takes nothing")


@pytest.mark.parametrize("index", [0, 3], ids=["the same batch once more", "another batch"])
async def test_a_job_that_cannot_be_published_keeps_others_waiting_once(
    bus: MemoryBus, engine: AsyncEngine, index: int
) -> None:
    """Whatever else arrives of that job: its row is held for as long as it is tried."""
    blocked = BlockedFor(bus, "busy")
    handlers = bare_handlers(blocked, engine, SystemClock())
    blocked.fail.set()
    with pytest.raises(UnavailableError):
        await handlers.batch_completed(completed("busy"))
    blocked.fail.clear()
    blocked.waiting.clear()
    again = asyncio.create_task(handlers.batch_completed(completed("busy")))
    await blocked.waiting.wait()
    more = asyncio.create_task(handlers.batch_completed(completed("busy", index)))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.gather(*(handlers.batch_completed(completed(job_id)) for job_id in "abc"))
    assert not again.done()
    assert not more.done()
    blocked.fail.set()
    with pytest.raises(UnavailableError):
        await again
    await asyncio.gather(more, return_exceptions=True)
    assert await open_questions(engine) == {"busy": 0, "a": 1, "b": 1, "c": 1}


async def test_whoever_waits_goes_on_when_the_one_whose_turn_it_is_leaves(bus: MemoryBus, engine: AsyncEngine) -> None:
    blocked = BlockedFor(bus, "a")
    handlers: Handlers = bare_handlers(blocked, engine, SystemClock())
    busy, leader, b, c = (
        asyncio.create_task(handlers.batch_completed(completed(job_id))) for job_id in ("busy", *"abc")
    )
    await blocked.waiting.wait()
    leader.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(busy, b, c)
    assert leader.cancelled()
    assert await open_questions(engine) == {"busy": 1, "a": 0, "b": 1, "c": 1}
