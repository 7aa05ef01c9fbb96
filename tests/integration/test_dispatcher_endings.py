"""Every way a job ends before its last batch, and every order in which a cancellation can arrive."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.settings import Settings
from parallax.contracts.messages import (
    BatchOpened,
    CloseBatch,
    ExecutionTask,
    JobAccepted,
    JobCancelled,
    JobFinished,
    JobStarted,
)
from parallax.contracts.outcomes import Counts, ExecutionStatus, JobOutcome
from parallax.contracts.routing import executions
from parallax.db.engine import create_engine
from tests.integration.dispatcher_stage import CATALOG, Stage, dispatching, job_document, staged

WAITING_FOR_AN_ID = (
    "locktype = 'advisory' AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


@pytest.fixture
async def stage(engine: AsyncEngine) -> AsyncIterator[Stage]:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(max_active_jobs=1)):
        yield stage


async def opened(stage: Stage, job_id: str) -> None:
    await stage.until(lambda: bool(stage.heard(BatchOpened, job_id)))


async def test_cancel_while_running(stage: Stage) -> None:
    stage.outcome = lambda task: ExecutionStatus.COMPLETED if task.region == "us" else None
    await stage.run_executors()
    await stage.submit("job")
    await stage.until(lambda: len(stage.heard(ExecutionTask, "job")) == 2)
    await stage.cancel("job", "too dear\0")
    end = await stage.finished("job")
    assert (end.outcome, end.reason.code, end.reason.message) == (JobOutcome.CANCELLED, "cancelled", "too dear\ufffd")
    assert (end.counts, end.not_started) == (Counts(completed=1, cancelled=1), 4), "what was answered is kept"
    (closing,) = stage.heard(CloseBatch, "job")
    assert (closing.status, closing.error.error_class) == (ExecutionStatus.CANCELLED, "cancelled")
    assert [cancelled.reason.message for cancelled in stage.heard(JobCancelled, "job")] == ["too dear\ufffd"]


async def test_cancel_twice_and_after_the_end(stage: Stage) -> None:
    await stage.submit("job")
    await opened(stage, "job")
    await stage.cancel("job", "first")
    await stage.until(lambda: bool(stage.heard(JobCancelled, "job")))
    await stage.cancel("job", "second")
    end = await stage.finished("job")
    assert end.reason.message == "first"
    told = len(stage.heard(JobFinished, "job"))
    await stage.cancel("job", "third")
    await stage.until(lambda: len(stage.heard(JobFinished, "job")) > told)
    await stage.submit("next")
    await opened(stage, "next")
    assert all(told == end for told in stage.heard(JobFinished, "job"))
    assert len(stage.heard(JobCancelled, "job")) == 1


async def test_submitted_again_after_the_end(stage: Stage) -> None:
    """A job cancelled before it arrived ends in the step that accepts it: nothing but its submission comes again."""
    await stage.cancel("job", "never mind")
    await stage.until_rows("dispatcher.tombstones", 1)
    await stage.submit("job")
    end = await stage.finished("job")
    told = len(stage.heard(JobFinished, "job"))
    await stage.submit("job")
    await stage.until(lambda: len(stage.heard(JobFinished, "job")) > told)
    assert all(told == end for told in stage.heard(JobFinished, "job"))


async def test_cancel_while_the_job_waits(stage: Stage) -> None:
    await stage.submit("first")
    await stage.submit("second")
    await stage.cancel("second")
    end = await stage.finished("second")
    assert (end.outcome, end.counts, end.not_started) == (JobOutcome.CANCELLED, Counts(), 6)
    assert stage.heard(JobStarted, "second") == []


async def test_cancel_before_the_job_arrives(stage: Stage) -> None:
    await stage.cancel("job", "overtaken")
    await stage.until_rows("dispatcher.tombstones", 1)
    answer = await stage.submit("job")
    assert isinstance(answer, JobAccepted)
    end = await stage.finished("job")
    assert (end.outcome, end.reason.message, end.not_started) == (JobOutcome.CANCELLED, "overtaken", 6)
    assert stage.heard(JobStarted, "job") == []
    assert all(stage.broker.depth(executions(region)) == 0 for region in CATALOG.regions)
    await stage.until_rows("dispatcher.tombstones", 0)


async def test_cancel_while_the_job_is_being_accepted(engine: AsyncEngine) -> None:
    """Neither transaction sees the other's row; the lock of the id makes the second wait for the first."""
    async with staged(engine) as stage, dispatching(stage), engine.connect() as another:
        await another.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('dispatcher.job.job', 0))"))
        submitting = asyncio.create_task(stage.submit("job"))
        await stage.until_rows("pg_locks", 1, where=WAITING_FOR_AN_ID)
        await stage.cancel("job")
        await stage.until_rows("pg_locks", 2, where=WAITING_FOR_AN_ID)
        await another.rollback()
        await submitting
        assert (await stage.finished("job")).outcome is JobOutcome.CANCELLED
        await stage.until_rows("dispatcher.tombstones", 0)


async def test_a_cancelled_job_makes_room(stage: Stage) -> None:
    await stage.submit("first")
    await stage.submit("second")
    await stage.cancel("first")
    await stage.run_executors()
    assert (await stage.finished("second")).outcome is JobOutcome.COMPLETED


async def test_a_batch_out_of_time_is_closed_and_the_job_goes_on(stage: Stage) -> None:
    await stage.submit("job", job_document(limits={"batch_deadline_s": 100, "job_deadline_s": 10_000}))
    await opened(stage, "job")
    stage.clock.advance(99)
    await stage.until_turning(lambda: len(stage.heard(BatchOpened, "job")) == 2)
    (closing,) = stage.heard(CloseBatch, "job")
    assert (closing.status, closing.error.error_class, closing.error.code) == (
        ExecutionStatus.TIMED_OUT, "deadline", "batch_deadline",
    )  # fmt: skip
    assert (closing.closed_at - stage.heard(JobStarted, "job")[0].started_at).total_seconds() >= 100
    await stage.run_executors()
    end = await stage.finished("job")
    assert end.counts == Counts(completed=4, timed_out=2)


async def test_a_job_out_of_time_ends(stage: Stage) -> None:
    await stage.submit("job", job_document(limits={"batch_deadline_s": 100, "job_deadline_s": 150}))
    await stage.until_turning(lambda: bool(stage.heard(JobFinished, "job")))
    (end,) = stage.heard(JobFinished, "job")
    assert (end.outcome, end.reason.code) == (JobOutcome.FAILED, "job_deadline")
    assert (end.counts, end.not_started) == (Counts(timed_out=4), 2)
    assert [cancelled.reason.code for cancelled in stage.heard(JobCancelled, "job")] == ["job_deadline"]


async def test_no_deadline_runs_while_a_job_waits(stage: Stage) -> None:
    await stage.submit("first", job_document(questions=1))
    await stage.submit("second", job_document(limits={"job_deadline_s": 100}))
    stage.clock.advance(1000)
    await stage.run_executors()
    assert (await stage.finished("second")).outcome is JobOutcome.COMPLETED


async def test_a_cancellation_whose_job_never_comes_is_forgotten(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(tombstones_kept_s=100)):
        await stage.cancel("job")
        await stage.until_rows("dispatcher.tombstones", 1)
        await stage.until_rows("dispatcher.tombstones", 0, turning_s=50)
