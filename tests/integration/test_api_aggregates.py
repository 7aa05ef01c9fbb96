"""Aggregates of large jobs are kept exactly as long as the ledger of the job stays as it is."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from parallax.contracts.answers import Summary, Tokens
from parallax.contracts.outcomes import Counts, ExecutionStatus
from parallax.contracts.plan import BatchPlan
from parallax.db.engine import transaction
from results.api.queries.reading import reading
from results.api.queries.summaries import KEPT, Aggregates, ledger_version
from tests.fakes import facts
from tests.integration.api_stage import CATALOG, Stage, staged

CANCELLED = ExecutionStatus.CANCELLED


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


@pytest.fixture
async def batch(stage: Stage) -> BatchPlan:
    """A batch of which the first execution is completed and the second was closed as cancelled."""
    opened = await stage.open("job-1", await stage.accept("job-1"), 0)
    answer = facts.observed(opened, opened.cells[0])
    await stage.store([answer, facts.ended(opened, opened.cells[1], CANCELLED)])
    return opened


async def told(stage: Stage, aggregates: Aggregates, job_id: str = "job-1") -> tuple[Tokens, Summary]:
    """Both aggregates of a job."""
    async with reading(stage.engine) as connection:
        version = await ledger_version(connection, job_id)
        assert version is not None
        totals = await aggregates.totals(connection, job_id, version)
        return totals[0], await aggregates.summary(connection, job_id, version)


async def change_without_a_trace(stage: Stage) -> None:
    """Change facts as nobody may: whoever still tells the old ones has not read them again."""
    async with transaction(stage.engine) as connection:
        await connection.execute(text("UPDATE results.executions SET usage = jsonb_set(usage, '{prompt_tokens}', '1')"))


async def test_nothing_is_read_again_while_the_ledger_stays(stage: Stage, batch: BatchPlan) -> None:
    aggregates = Aggregates(CATALOG, worth_keeping=1)
    before = await told(stage, aggregates)
    await change_without_a_trace(stage)
    assert batch.ref.job_id == "job-1"
    assert await told(stage, aggregates) == before
    assert (await told(stage, Aggregates(CATALOG)))[0] == Tokens(prompt=1, completion=64)


async def test_another_fact_is_told(stage: Stage, batch: BatchPlan) -> None:
    aggregates = Aggregates(CATALOG, worth_keeping=1)
    await told(stage, aggregates)
    await stage.store([facts.observed(batch, batch.cells[2])])
    tokens, summary = await told(stage, aggregates)
    assert tokens == Tokens(prompt=62, completion=128)
    assert summary.counts == Counts(completed=2, cancelled=1)


async def test_a_replaced_fact_is_told_although_it_counts_the_same(stage: Stage, batch: BatchPlan) -> None:
    aggregates = Aggregates(CATALOG, worth_keeping=1)
    _, before = await told(stage, aggregates)
    late = facts.observed(batch, batch.cells[1]).model_copy(update={"status": CANCELLED})
    await stage.store([late])
    tokens, after = await told(stage, aggregates)
    assert after.counts == before.counts
    assert tokens == Tokens(prompt=62, completion=128)
    assert after.tokens == tokens


async def test_aggregates_of_small_jobs_are_not_kept(stage: Stage, batch: BatchPlan) -> None:
    aggregates = Aggregates(CATALOG, worth_keeping=len(batch.cells))
    await told(stage, aggregates)
    await change_without_a_trace(stage)
    assert (await told(stage, aggregates))[0] == Tokens(prompt=1, completion=64)


async def test_only_the_last_few_are_kept(stage: Stage, batch: BatchPlan) -> None:
    aggregates = Aggregates(CATALOG, worth_keeping=0)
    await told(stage, aggregates)
    for number in range(KEPT // 2):
        await stage.accept(f"other-{number}")
        await told(stage, aggregates, f"other-{number}")
    await change_without_a_trace(stage)
    assert batch.ref.job_id == "job-1"
    assert (await told(stage, aggregates))[0] == Tokens(prompt=1, completion=64)


async def test_job_and_summary_tell_the_same(stage: Stage, batch: BatchPlan) -> None:
    await stage.store([facts.observed(batch, batch.cells[1])])
    job = (await stage.http.get("/v1/jobs/job-1")).json()
    summary = (await stage.http.get("/v1/jobs/job-1/summary")).json()
    assert job["counts"] == summary["counts"] == {"completed": 2, "failed": 0, "timed_out": 0, "cancelled": 0}
    assert job["tokens"] == summary["tokens"]
    assert job["cost"] == summary["cost"]
