"""Ending a batch and asking how far it is, on PostgreSQL and the memory bus."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.clock import SystemClock
from parallax.contracts.heartbeat import ExecutorHeartbeat, FenceReading, RunningExecution
from parallax.contracts.job import Barrier
from parallax.contracts.messages import (
    BatchCompleted,
    BatchIncomplete,
    CloseBatch,
    ExecutionFinished,
    InspectBatch,
    JobAccepted,
    encode,
)
from parallax.contracts.outcomes import Counts, ErrorInfo, ExecutionStatus
from parallax.contracts.plan import BatchPlan, Cell, JobPlan, PlannedModel
from parallax.contracts.routing import PROGRESS
from parallax.errors import PoisonError
from results import batches, closings, heartbeats, ledger, projection
from results.batches import Batch
from results.facts import BatchKey, BatchSize, read_news
from results.writing import writing
from tests.fakes.facts import REGIONS, START, ended, every, observed, plan
from tests.harness.results import Inbox, blocked, results_engine, row, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
ERROR = ErrorInfo(error_class="deadline", code="batch_deadline", message="overdue after 3600 s", retryable=False)
TOKEN = "round-1"
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

    async def inspect(self, batch: BatchPlan, token: str | None = TOKEN) -> object:
        message = InspectBatch(batch=batch, token=token)
        await closings.inspect(self._engine, MemoryBus(self._broker), FixedClock(), message)
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
    engine: AsyncEngine,
    batch: BatchPlan,
    *,
    region: str,
    holds: tuple[Cell, ...] = (),
    answers: tuple[Cell, ...] | None = (),
    age_s: float = 1.0,
    stopping: bool = False,
) -> None:
    """A heartbeat of an executor that holds some cells, and answers the fence with some, or not at all."""
    held = [
        RunningExecution(
            execution_id=observed(batch, cell).execution_id,
            job_id=batch.ref.job_id,
            question_id=batch.question_id,
            model_id=cell.model_id,
            since=START,
        )
        for cell in holds
    ]
    fences = []
    if answers is not None:
        listed = tuple(observed(batch, cell).execution_id for cell in (*holds, *answers))
        fences = [FenceReading(token="another", executions=()), FenceReading(token=TOKEN, executions=listed)]
    sent = NOW - timedelta(seconds=age_s)
    heartbeat = ExecutorHeartbeat(
        executor_id=f"{region}-1",
        region=region,
        budget=10,
        running=tuple(held),
        models=("smollm2-135m",),
        endpoint_state="ready",
        started_at=START,
        sent_at=sent,
        stopping=stopping,
        fences=tuple(fences),
    )
    await heartbeats.beat(engine, heartbeat, sent)


async def beat_everywhere(engine: AsyncEngine, batch: BatchPlan) -> None:
    for region in REGIONS:
        await beat(engine, batch, region=region)


def incomplete(
    batch: BatchPlan, *, missing: tuple[Cell, ...] = (), undecided: int = 0, recorded: int = 0, running: int = 0
) -> BatchIncomplete:
    return BatchIncomplete(
        batch=batch.ref, recorded=recorded, running=running, missing=missing, token=TOKEN, undecided=undecided
    )


def of(batch: BatchPlan, region: str) -> tuple[Cell, ...]:
    return tuple(cell for cell in batch.cells if cell.region == region)


async def test_what_no_executor_of_any_region_lists_is_missing(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    await beat_everywhere(engine, batch)

    assert await dispatcher.inspect(batch) == incomplete(batch, missing=batch.cells)


async def test_without_a_fence_nothing_is_called_missing(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan()
    await beat_everywhere(engine, batch)

    answer = incomplete(batch, undecided=6).model_copy(update={"token": None})
    assert await dispatcher.inspect(batch, None) == answer


async def test_a_task_taken_after_the_last_heartbeat_is_not_missing(
    engine: AsyncEngine, dispatcher: Dispatcher
) -> None:
    """The executor's heartbeat is fresh and lists nothing; it was sent before the fence was read."""
    batch = plan()
    await beat_everywhere(engine, batch)
    await beat(engine, batch, region="us", answers=None, age_s=0.5)

    missing = (*of(batch, "eu"), *of(batch, "apac"))
    answer = await dispatcher.inspect(batch)
    assert isinstance(answer, BatchIncomplete)
    assert (set(answer.missing), answer.undecided) == (set(missing), len(of(batch, "us")))


async def test_what_an_executor_holds_or_held_lately_is_not_missing(
    engine: AsyncEngine, dispatcher: Dispatcher
) -> None:
    """Its fact may be with another writer of results, its task on the way back to the queue."""
    batch = plan()
    await record(engine, *[observed(batch, cell) for cell in of(batch, "eu")])
    await beat_everywhere(engine, batch)
    one, two = of(batch, "us")
    await beat(engine, batch, region="us", holds=(one,), answers=(two,), age_s=0.5)

    expected = incomplete(batch, recorded=2, running=2, missing=of(batch, "apac"))
    assert await dispatcher.inspect(batch) == expected


@pytest.mark.parametrize(("age_s", "stopping"), [(14, False), (60, False), (1, True)])
async def test_a_region_with_an_executor_that_does_not_answer_is_undecided(
    engine: AsyncEngine, dispatcher: Dispatcher, age_s: float, *, stopping: bool
) -> None:
    batch = plan(models=1, regions=["us"])
    await beat(engine, batch, region="us", holds=(), answers=None, age_s=age_s, stopping=stopping)

    assert await dispatcher.inspect(batch) == incomplete(batch, undecided=1)


async def test_a_region_without_a_live_executor_is_undecided(engine: AsyncEngine, dispatcher: Dispatcher) -> None:
    batch = plan(models=1, regions=["us"])
    await beat(engine, batch, region="us", holds=batch.cells, age_s=200)

    assert await dispatcher.inspect(batch) == incomplete(batch, running=1)
    other = plan(models=1, regions=["us"], question_index=1)
    assert await dispatcher.inspect(other) == incomplete(other, undecided=1)


@pytest.mark.parametrize("waiting", ["a fact", "a heartbeat"])
async def test_nothing_is_called_missing_while_results_has_not_caught_up(
    engine: AsyncEngine, broker: MemoryBroker, dispatcher: Dispatcher, waiting: str
) -> None:
    batch = plan()
    await beat_everywhere(engine, batch)
    heartbeat = ExecutorHeartbeat(
        executor_id="us-2", region="us", budget=1, running=(), models=(), endpoint_state="ready", started_at=NOW,
        sent_at=NOW,
    )  # fmt: skip
    await MemoryBus(broker).publish(observed(batch, batch.cells[0]) if waiting == "a fact" else heartbeat)

    assert await dispatcher.inspect(batch) == incomplete(batch, undecided=6)


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
