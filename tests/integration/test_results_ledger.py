"""The ledger on PostgreSQL: first fact wins, exact counters, concurrent writers."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.contracts.messages import ExecutionFinished, encode
from parallax.contracts.outcomes import Counts, ExecutionStatus
from parallax.contracts.plan import BatchPlan, BatchRef
from parallax.errors import PoisonError
from results import batches, ledger
from results.batches import Batch
from results.facts import BatchKey, BatchSize, Fact, Opening, read_news
from results.writing import writing
from tests.fakes.facts import ended, every, observed, plan
from tests.harness.results import blocked, results_engine, row, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
COUNTERS = "SELECT completed, failed, timed_out, cancelled, recorded FROM results.batches"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


def read(some: Iterable[ExecutionFinished]) -> list[Fact | Opening]:
    return [read_news(encode(fact)) for fact in some]


async def record(engine: AsyncEngine, *some: ExecutionFinished) -> list[Batch]:
    return await ledger.record(engine, read(some), NOW)


def counters(**counts: int) -> dict[str, int]:
    return {**Counts(**counts).model_dump(), "recorded": sum(counts.values())}


async def test_every_field_of_a_fact_is_kept(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    fact = observed(batch, batch.cells[0], text="The wheel \u2603 \\u0000")
    await record(engine, fact)

    stored = await row(engine, "SELECT * FROM results.executions")

    sent = fact.model_dump(mode="json")
    for column in ("job_id", "lane", "question_index"):
        assert stored[column] == sent["batch"][column]
    for column in ("messages", "output", "usage", "receipt", "error", "attempts", "question_id", "model_id", "model",
                   "region", "sample", "status", "observed", "provider_id", "finish_reason"):  # fmt: skip
        assert stored[column] == sent[column], column
    assert stored["execution_id"] == fact.execution_id
    assert (stored["started_at"], stored["completed_at"]) == (fact.started_at, fact.completed_at)
    derived = ("prompt_tokens", "completion_tokens", "attempt_count", "duration_s", "output_chars", "refused")
    assert [stored[column] for column in derived] == [31, 64, 1, 1.5, 18, False]


async def test_a_fact_without_a_call_has_no_durations_or_tokens(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    await record(engine, ended(batch, batch.cells[0], ExecutionStatus.CANCELLED, seen=True))

    stored = await row(engine, "SELECT * FROM results.executions")

    assert [stored[c] for c in ("started_at", "duration_s", "prompt_tokens", "output", "output_chars", "receipt")] == [
        None
    ] * 6
    assert (stored["attempts"], stored["attempt_count"], stored["messages"]) == ([], 0, stored["messages"])


async def test_a_batch_is_full_with_its_last_fact_and_not_before(engine: AsyncEngine) -> None:
    batch = plan()
    *most, last = every(batch)

    assert await record(engine, *most) == []
    assert (await row(engine, "SELECT completed_at FROM results.batches"))["completed_at"] is None
    (full,) = await record(engine, last)

    assert full.signal().counts == Counts(completed=6)
    assert full.signal().batch == batch.ref
    assert (await row(engine, "SELECT completed_at FROM results.batches"))["completed_at"] == NOW


async def test_repetitions_change_nothing_but_signal_again(engine: AsyncEngine) -> None:
    batch = plan()
    answers = list(every(batch))
    await record(engine, *answers)
    before = await rows(engine, "SELECT * FROM results.executions ORDER BY execution_id")

    others = [observed(batch, cell, text="a second opinion") for cell in batch.cells]
    (again,) = await record(engine, others[0])
    (all_again,) = await record(engine, *others, *answers)

    assert again.counts == all_again.counts == Counts(completed=6)
    assert await rows(engine, "SELECT * FROM results.executions ORDER BY execution_id") == before
    assert await row(engine, COUNTERS) == counters(completed=6)
    assert len(await rows(engine, "SELECT * FROM results.events")) == 1


async def test_duplicates_inside_one_flush_are_counted_once(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    answers = list(every(batch))

    (full,) = await record(engine, *answers, *answers, answers[0])

    assert full.counts == Counts(completed=3)
    assert len(await rows(engine, "SELECT * FROM results.executions")) == 3


SYNTHETIC = ExecutionStatus.TIMED_OUT
ORDERS: list[tuple[list[list[str]], str, dict[str, int]]] = [
    ([["synthetic"], ["answer"]], "completed", {"completed": 1}),
    ([["answer"], ["synthetic"]], "completed", {"completed": 1}),
    ([["synthetic", "answer"]], "completed", {"completed": 1}),
    ([["answer", "synthetic"]], "completed", {"completed": 1}),
    ([["synthetic"], ["cancelled"]], "timed_out", {"timed_out": 1}),
    ([["synthetic"], ["answer"], ["other"]], "completed", {"completed": 1}),
    ([["synthetic"], ["failure"], ["answer"]], "failed", {"failed": 1}),
    ([["failure"], ["answer"]], "failed", {"failed": 1}),
    ([["failure"], ["synthetic"]], "failed", {"failed": 1}),
    ([["synthetic"], ["synthetic", "cancelled", "other", "answer"]], "completed", {"completed": 1}),
]


@pytest.mark.parametrize(("flushes", "status", "expected"), ORDERS)
async def test_an_observed_fact_replaces_a_synthetic_one_and_nothing_else_does(
    engine: AsyncEngine, flushes: list[list[str]], status: str, expected: dict[str, int]
) -> None:
    batch = plan(models=1)
    cell = batch.cells[0]
    known = {
        "synthetic": ended(batch, cell, SYNTHETIC),
        "cancelled": ended(batch, cell, ExecutionStatus.CANCELLED),
        "failure": ended(batch, cell, ExecutionStatus.FAILED, seen=True),
        "answer": observed(batch, cell),
        "other": observed(batch, cell, text="a second opinion"),
    }
    for flush in flushes:
        await record(engine, *[known[name] for name in flush])

    stored = await row(engine, "SELECT status, observed, replaced_status, output FROM results.executions")

    assert stored["status"] == status
    assert stored["observed"] is (status != "timed_out")
    replaced = flushes[0] == ["synthetic"] and status != "timed_out"
    assert stored["replaced_status"] == ("timed_out" if replaced else None)
    assert await row(engine, COUNTERS) == counters(**expected)


async def test_a_replacement_in_a_full_batch_signals_with_the_new_counts(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    await record(engine, *[ended(batch, cell, SYNTHETIC) for cell in batch.cells])

    (full,) = await record(engine, observed(batch, batch.cells[1]))

    assert full.counts == Counts(completed=1, timed_out=2)
    assert len(await rows(engine, "SELECT * FROM results.events")) == 1


async def test_one_flush_serves_many_batches_and_jobs(engine: AsyncEngine) -> None:
    plans = [plan(f"job-{job}", question, models=1) for job in (2, 10, 1) for question in (10, 2, 0)]
    short = plan("job-3")
    mixed = [fact for each in plans for fact in every(each)] + [next(every(short))]
    random.Random(7).shuffle(mixed)

    full = await record(engine, *mixed)

    assert {batch.key for batch in full} == {BatchKey(**each.ref.model_dump()) for each in plans}
    numbers = await rows(engine, "SELECT job_id, number FROM results.events ORDER BY job_id, number")
    assert [(e["job_id"], e["number"]) for e in numbers] == [
        (j, n) for j in ("job-1", "job-10", "job-2") for n in (1, 2, 3)
    ]


async def test_a_fact_that_claims_another_batch_than_the_stored_one_moves_no_counter(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    await record(engine, ended(batch, batch.cells[0], SYNTHETIC))
    stray = observed(batch, batch.cells[0]).model_copy(
        update={"batch": BatchRef(job_id="job-1", lane="all", question_index=9)}
    )

    await record(engine, stray)

    assert (await row(engine, "SELECT status FROM results.executions"))["status"] == "timed_out"
    assert await row(engine, COUNTERS + " WHERE question_index = 0") == counters(timed_out=1)
    assert await row(engine, COUNTERS + " WHERE question_index = 9") == counters()


async def test_a_second_question_at_the_same_place_is_poison(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    await record(engine, *every(batch))
    other = BatchPlan(ref=batch.ref, question_id="another-question", cells=batch.cells)

    with pytest.raises(PoisonError, match="executions_in_order"):
        await record(engine, observed(other, other.cells[0]))


async def test_numbers_out_of_range_are_poison_and_leave_nothing(engine: AsyncEngine) -> None:
    batch = plan(models=1)
    (first, *_) = every(batch)
    huge = first.model_copy(update={"usage": {"prompt_tokens": 10**30, "completion_tokens": 0}})

    with pytest.raises(PoisonError, match="out of range"):
        await ledger.record(engine, [read_news(huge.model_dump_json(warnings=False).encode())], NOW)

    assert await rows(engine, "SELECT * FROM results.batches") == []


# --- concurrent writers


async def lock_row(connection: Any, batch: BatchPlan) -> None:
    await batches.lock(connection, size(batch))


def size(batch: BatchPlan) -> BatchSize:
    return BatchSize(BatchKey(**batch.ref.model_dump()), batch.question_id, len(batch.cells), planned=True)


async def test_of_two_writers_that_complete_a_batch_together_one_signals(engine: AsyncEngine) -> None:
    batch = plan()
    answers = list(every(batch))
    async with writing(engine) as gate:
        await lock_row(gate, batch)
        first = asyncio.create_task(record(engine, *answers[:3]))
        second = asyncio.create_task(record(engine, *answers[3:]))
        await blocked(engine, 2)
        assert not first.done()
        assert not second.done()

    signals = await first + await second

    assert [batch.counts for batch in signals] == [Counts(completed=6)]
    assert await row(engine, COUNTERS) == counters(completed=6)


async def test_the_same_facts_written_twice_at_once_are_counted_once(engine: AsyncEngine) -> None:
    batch = plan()
    answers = list(every(batch))
    async with writing(engine) as gate:
        await lock_row(gate, batch)
        writers = [asyncio.create_task(record(engine, *random.sample(answers, k=6))) for _ in range(3)]
        await blocked(engine, 3)

    signals = [await writer for writer in writers]

    assert [[batch.counts for batch in signal] for signal in signals] == [[Counts(completed=6)]] * 3
    assert await row(engine, COUNTERS) == counters(completed=6)


async def test_existing_batches_are_locked_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    early, late = plan("job-a"), plan("job-b")
    async with writing(engine) as connection:
        await batches.lock(connection, size(late))
        await batches.lock(connection, size(early))

    async with writing(engine) as holder:
        await lock_row(holder, early)
        waiting = asyncio.create_task(record(engine, next(every(late)), next(every(early))))
        await blocked(engine, 1)
        async with writing(engine) as other:  # fails at once if the waiting writer holds the later batch already
            await other.execute(text("SELECT 1 FROM results.batches WHERE job_id = 'job-b' FOR UPDATE NOWAIT"))
    await waiting


async def test_new_batches_are_made_in_the_order_of_their_keys(engine: AsyncEngine) -> None:
    early, late = plan("job-a"), plan("job-b")

    async with writing(engine) as holder:
        await lock_row(holder, early)
        waiting = asyncio.create_task(record(engine, next(every(late)), next(every(early))))
        await blocked(engine, 1)
        async with writing(engine) as other:  # times out if the waiting writer has made the later batch already
            await other.execute(text("SET LOCAL lock_timeout = '1s'"))
            await lock_row(other, late)
    await waiting


async def test_writers_in_disorder_neither_deadlock_nor_lose_anything(engine: AsyncEngine) -> None:
    plans = [plan(f"job-{job}", question, models=1) for job in range(3) for question in range(4)]
    everything = [fact for each in plans for fact in every(each)]

    async def writer(seed: int) -> list[Batch]:
        mine, signals = everything.copy(), []
        random.Random(seed).shuffle(mine)
        for start in range(0, len(mine), 6):
            signals += await record(engine, *mine[start : start + 6])
        return signals

    signalled = await asyncio.gather(*[writer(seed) for seed in range(4)])

    assert {batch.key for signals in signalled for batch in signals} == {size(each).key for each in plans}
    assert await rows(engine, COUNTERS) == [counters(completed=3)] * len(plans)
    assert len(await rows(engine, "SELECT * FROM results.executions")) == len(everything)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert (await row(engine, deadlocks))["deadlocks"] == 0
