"""Ending a batch and asking how far it is, on PostgreSQL and the memory bus."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.job import Barrier
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    CloseBatch,
    ExecutionFinished,
    ExecutorHeartbeat,
    InspectBatch,
    JobAccepted,
    RunningExecution,
    encode,
)
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus
from parallax.contracts.plan import BatchPlan, Cell, JobPlan, PlannedModel
from parallax.contracts.routing import FACTS, PROGRESS
from parallax.errors import PoisonError
from results import batches, closings, heartbeats, ledger, projection
from results.batches import Batch
from results.facts import BatchKey, BatchSize, read_news
from results.writing import writing
from tests.fakes.facts import REGIONS, START, ended, every, observed, plan
from tests.harness.results import Inbox, blocked, results_engine, row, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
ERROR = ErrorInfo(error_class="deadline", code="batch_deadline", message="overdue after 3600 s", retryable=False)
COUNTERS = "SELECT completed, failed, timed_out, cancelled, expected FROM results.batches"


class FixedClock(SystemClock):
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW


class Dispatcher:
    """Sends requests about batches, and sees the answers."""

    def __init__(self, engine: AsyncEngine, broker: MemoryBroker, inbox: Inbox) -> None:
        self._engine = engine
        self._broker = broker
        self._inbox = inbox

    async def close(self, batch: BatchPlan, status: ExecutionStatus = ExecutionStatus.TIMED_OUT) -> object:
        message = CloseBatch(batch=batch, status=status, error=ERROR, closed_at=NOW)
        await closings.close(self._engine, MemoryBus(self._broker), FixedClock(), message)
        return await self._inbox.next()

    async def inspect(self, batch: BatchPlan) -> object:
        await closings.inspect(self._engine, MemoryBus(self._broker), FixedClock(), InspectBatch(batch=batch))
        return await self._inbox.next()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(REGIONS)


@pytest.fixture
async def dispatcher(engine: AsyncEngine, broker: MemoryBroker) -> Dispatcher:
    return Dispatcher(engine, broker, await Inbox.of(broker, PROGRESS))


async def record(engine: AsyncEngine, *some: ExecutionFinished) -> list[Batch]:
    return await ledger.record(engine, [read_news(encode(fact)) for fact in some], NOW)


def full(batch: BatchPlan, **counts: int) -> BatchCompleted:
    return BatchCompleted(batch=batch.ref, counts=Counts(**counts))


# --- closing


async def test_what_is_missing_gets_a_synthetic_fact(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    await record(engine, *[observed(batch, cell) for cell in batch.cells[:4]])

    assert await dispatcher.close(batch) == full(batch, completed=4, timed_out=2)

    synthetic = await rows(engine, "SELECT * FROM results.executions WHERE NOT observed ORDER BY region")
    assert [(each["model_id"], each["region"], each["status"]) for each in synthetic] == [
        ("model-1", "apac", "timed_out"),
        ("model-1", "eu", "timed_out"),
    ]
    for each in synthetic:
        cell = Cell(each["model_id"], each["region"], each["sample"])
        assert each["execution_id"] == observed(batch, cell).execution_id
        assert (each["error"], each["messages"], each["attempts"]) == (ERROR.model_dump(), [], [])
        assert (each["question_id"], each["completed_at"], each["started_at"]) == ("question-0", NOW, None)
    closed = await row(engine, "SELECT closed_at, closed_status, closed_error, completed_at FROM results.batches")
    assert closed == {
        "closed_at": NOW,
        "closed_status": "timed_out",
        "closed_error": ERROR.model_dump(),
        "completed_at": NOW,
    }


async def test_a_batch_nothing_is_known_of_can_be_closed(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()

    assert await dispatcher.close(batch, ExecutionStatus.CANCELLED) == full(batch, cancelled=6)
    assert len(await rows(engine, "SELECT * FROM results.executions")) == 6


async def test_closing_again_changes_nothing_and_signals_again(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    await record(engine, observed(batch, batch.cells[0]))
    first = await dispatcher.close(batch)
    before = await rows(engine, "SELECT * FROM results.executions ORDER BY execution_id")

    assert await dispatcher.close(batch, ExecutionStatus.CANCELLED) == first

    assert await rows(engine, "SELECT * FROM results.executions ORDER BY execution_id") == before
    assert (await row(engine, "SELECT closed_status FROM results.batches"))["closed_status"] == "timed_out"
    assert len(await rows(engine, "SELECT * FROM results.events")) == 1


async def test_closing_a_full_batch_only_signals(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan(models=1)
    await record(engine, *every(batch))

    assert await dispatcher.close(batch) == full(batch, completed=3)


async def test_an_answer_that_comes_after_the_closing_is_kept(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan(models=1)
    await dispatcher.close(batch, ExecutionStatus.CANCELLED)

    (batch_after,) = await record(engine, observed(batch, batch.cells[0]))

    assert batch_after.counts == Counts(completed=1, cancelled=2)


async def test_synthetic_facts_know_the_catalog_name_of_their_model(
    engine: AsyncEngine, dispatcher: Dispatcher
) -> None:
    batch = plan(models=2, regions=["us"])
    await projection.project(
        engine,
        JobAccepted(
            job_id="job-1",
            name="a job",
            job={"models": [{"id": "model-0", "model": "smollm2-135m"}, {"id": "model-1", "model": None}]},
            plan=JobPlan(barrier=Barrier.QUESTION, samples=1, models=(PlannedModel(model_id="m", regions=("us",)),)),
            questions=1,
            batches=1,
            executions=2,
            accepted_at=START,
        ),
        NOW,
    )

    await dispatcher.close(batch)

    named = await rows(engine, "SELECT model_id, model FROM results.executions ORDER BY model_id")
    assert [tuple(each.values()) for each in named] == [("model-0", "smollm2-135m"), ("model-1", "model-1")]


async def test_an_empty_batch_is_full(dispatcher: Dispatcher) -> None:
    empty = plan().model_copy(update={"cells": ()})

    assert await dispatcher.close(empty) == full(empty)


async def test_a_batch_cannot_be_closed_as_completed(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    with pytest.raises(PoisonError, match="cannot be closed as completed"):
        await dispatcher.close(plan(), ExecutionStatus.COMPLETED)

    assert await rows(engine, "SELECT * FROM results.batches") == []


async def test_the_plan_corrects_a_size_that_a_fact_got_wrong(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan(models=1)
    wrong = observed(batch, batch.cells[0]).model_copy(update={"batch_size": 99})
    await record(engine, wrong)

    assert await dispatcher.close(batch) == full(batch, completed=1, timed_out=2)
    assert (await row(engine, COUNTERS))["expected"] == 3


async def test_a_closing_and_the_last_facts_at_once_lose_nothing(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    size = BatchSize(BatchKey(**batch.ref.model_dump()), batch.question_id, 6, planned=True)
    async with writing(engine) as gate:
        await batches.lock(gate, size)
        answers = asyncio.create_task(record(engine, *every(batch)))
        closing = asyncio.create_task(dispatcher.close(batch))
        await blocked(engine, 2)
    await asyncio.gather(answers, closing)

    # Whoever was first: the answers win, and they are counted once.
    assert await row(engine, COUNTERS) == {**Counts(completed=6).model_dump(), "expected": 6}


# --- inspecting


async def beat(
    engine: AsyncEngine, batch: BatchPlan, cells: tuple[Cell, ...], *, age_s: float, stopping: bool = False
) -> None:
    started = [
        RunningExecution(
            execution_id=observed(batch, cell).execution_id,
            job_id=batch.ref.job_id,
            question_id=batch.question_id,
            model_id=cell.model_id,
            since=START,
        )
        for cell in cells
    ]
    sent = NOW - timedelta(seconds=age_s)
    heartbeat = ExecutorHeartbeat(
        executor_id="us-1",
        region="us",
        budget=10,
        running=tuple(started),
        models=("smollm2-135m",),
        endpoint_state="ready",
        started_at=START,
        sent_at=sent,
        stopping=stopping,
    )
    await heartbeats.beat(engine, heartbeat, sent)


async def test_a_batch_without_facts_misses_everything(dispatcher: Dispatcher) -> None:
    batch = plan()

    assert await dispatcher.inspect(batch) == BatchIncomplete(
        batch=batch.ref, recorded=0, running=0, missing=batch.cells
    )


async def test_what_a_live_executor_runs_is_not_missing(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    await record(engine, *[observed(batch, cell) for cell in batch.cells[:2]])
    await beat(engine, batch, batch.cells[1:4], age_s=14)

    assert await dispatcher.inspect(batch) == BatchIncomplete(
        batch=batch.ref, recorded=2, running=2, missing=batch.cells[4:]
    )


@pytest.mark.parametrize(("age_s", "stopping"), [(16, False), (1, True)])
async def test_what_a_dead_or_leaving_executor_ran_is_missing(
    engine: AsyncEngine, dispatcher: Dispatcher, age_s: float, *, stopping: bool
) -> None:
    batch = plan()
    await beat(engine, batch, batch.cells, age_s=age_s, stopping=stopping)

    assert await dispatcher.inspect(batch) == BatchIncomplete(
        batch=batch.ref, recorded=0, running=0, missing=batch.cells
    )


async def test_nothing_is_called_missing_while_facts_wait(broker: MemoryBroker, dispatcher: Dispatcher) -> None:
    batch = plan()
    await MemoryBus(broker).publish(observed(batch, batch.cells[0]))
    assert broker.depth(FACTS) == 1

    assert await dispatcher.inspect(batch) == BatchIncomplete(batch=batch.ref, recorded=0, running=0, missing=())


async def test_a_full_batch_is_signalled_again(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan(models=1)
    await record(engine, *[ended(batch, cell, ExecutionStatus.FAILED, seen=True) for cell in batch.cells])

    assert await dispatcher.inspect(batch) == full(batch, failed=3)
    assert await dispatcher.inspect(batch) == full(batch, failed=3)


async def test_an_inspection_completes_a_batch_whose_size_was_wrong(
    engine: AsyncEngine, dispatcher: Dispatcher
) -> None:
    batch = plan(models=1)
    assert await record(engine, *[fact.model_copy(update={"batch_size": 99}) for fact in every(batch)]) == []

    assert await dispatcher.inspect(batch) == full(batch, completed=3)
    assert (await row(engine, "SELECT completed_at FROM results.batches"))["completed_at"] == NOW
