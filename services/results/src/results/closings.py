"""Answers to the dispatcher about single batches: end one, or say how far it is."""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.bus.port import Bus
from parallax.clock import Clock
from parallax.contracts.messages import BatchIncomplete, CloseBatch, InspectBatch
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.plan import BatchPlan
from parallax.contracts.routing import FACTS, HEARTBEATS
from parallax.errors import PoisonError
from results import batches, heartbeats
from results.facts import BatchKey, BatchSize
from results.witnesses import decided_regions
from results.writing import writing

_CLOSE: Final = text("""
    WITH missing AS (
        INSERT INTO results.executions (
            execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status,
            observed, messages, error, attempts, completed_at)
        SELECT c.execution_id, :job_id, :lane, :question_index, :question_id, c.model_id,
               coalesce(m.model, c.model_id), c.region, c.sample, :status, false, '[]', CAST(:error AS jsonb), '[]',
               :closed_at
        FROM unnest(CAST(:ids AS uuid[]), CAST(:models AS text[]), CAST(:regions AS text[]),
                    CAST(:samples AS integer[])) AS c (execution_id, model_id, region, sample)
        LEFT JOIN (
            SELECT m ->> 'id' AS model_id, m ->> 'model' AS model
            FROM results.jobs j, jsonb_array_elements(j.spec -> 'models') AS m
            WHERE j.job_id = :job_id
        ) m USING (model_id)
        ON CONFLICT (execution_id) DO NOTHING
        RETURNING status
    ), added AS (
        SELECT count(*) AS executions FROM missing
    )
    UPDATE results.batches b SET
        completed = completed + CASE WHEN :status = 'completed' THEN executions ELSE 0 END,
        failed = failed + CASE WHEN :status = 'failed' THEN executions ELSE 0 END,
        timed_out = timed_out + CASE WHEN :status = 'timed_out' THEN executions ELSE 0 END,
        cancelled = cancelled + CASE WHEN :status = 'cancelled' THEN executions ELSE 0 END,
        closed_status = coalesce(closed_status, :status),
        closed_error = coalesce(closed_error, CAST(:error AS jsonb)),
        closed_at = coalesce(closed_at, :closed_at)
    FROM added
    WHERE job_id = :job_id AND lane = :lane AND question_index = :question_index
""")

_RECORDED: Final = text("SELECT execution_id FROM results.executions WHERE execution_id = ANY(CAST(:ids AS uuid[]))")


async def close(engine: AsyncEngine, bus: Bus, clock: Clock, message: CloseBatch) -> None:
    """Write a synthetic fact for every execution of a batch that has none, and signal that the batch is full.

    Idempotent: a repetition finds nothing missing, and signals again. A fact that arrives later is a repetition
    for the ledger, or, when observed, replaces the synthetic one.

    Raises:
        PoisonError: The batch is to be closed as completed, which would invent answers.
    """
    if message.status is ExecutionStatus.COMPLETED:
        raise PoisonError("a batch cannot be closed as completed: its missing executions have no answers")
    now, size = clock.now(), _size(message.batch)
    async with writing(engine) as connection:
        await batches.lock(connection, size)
        await connection.execute(_CLOSE, _closing(message))
        full = await batches.fill(connection, size, now)
    batches.log_fresh(full, now)
    await bus.publish(*[batch.signal() for batch in full])


def _closing(message: CloseBatch) -> dict[str, object]:
    cells = message.batch.execution_ids()
    return {
        **message.batch.ref.model_dump(),
        "question_id": message.batch.question_id,
        "status": message.status.value,
        "error": message.error.model_dump_json(),
        "closed_at": message.closed_at,
        "ids": list(cells),
        "models": [cell.model_id for cell in cells.values()],
        "regions": [cell.region for cell in cells.values()],
        "samples": [cell.sample for cell in cells.values()],
    }


async def inspect(engine: AsyncEngine, bus: Bus, clock: Clock, message: InspectBatch) -> None:
    """Answer how far a batch is: ``BatchCompleted``, or ``BatchIncomplete`` with what is missing.

    Missing is what is nowhere, see ``results.witnesses``. Without the token of a fence nothing can be. While facts or
    heartbeats wait in their queues nothing is called missing either: they may tell where it is. The dispatcher will
    ask again.
    """
    caught_up = message.token is not None and await bus.depth(FACTS) == 0 and await bus.depth(HEARTBEATS) == 0
    now, size, cells = clock.now(), _size(message.batch), message.batch.execution_ids()
    async with writing(engine) as connection:
        witnesses = await heartbeats.witnesses(connection, message.token or "")
        running = await heartbeats.running(connection, message.batch.ref.job_id, now)
        await batches.lock(connection, size)
        recorded = await _recorded(connection, cells)
        full = await batches.fill(connection, size, now)
    batches.log_fresh(full, now)
    if full:
        await bus.publish(full[0].signal())
        return
    held = running.union(*(witness.answer for witness in witnesses if witness.answer is not None))
    unrecorded = cells.keys() - recorded
    unknown = unrecorded - held
    decided = decided_regions(witnesses, now) if caught_up else frozenset[str]()
    missing = tuple(cell for each, cell in cells.items() if each in unknown and cell.region in decided)
    incomplete = BatchIncomplete(
        batch=message.batch.ref,
        recorded=len(recorded),
        running=len(unrecorded & held),
        missing=missing,
        token=message.token,
        undecided=len(unknown) - len(missing),
    )
    await bus.publish(incomplete)


async def _recorded(connection: AsyncConnection, executions: Iterable[UUID]) -> set[UUID]:
    return set((await connection.execute(_RECORDED, {"ids": list(executions)})).scalars())


def _size(plan: BatchPlan) -> BatchSize:
    key = BatchKey(plan.ref.job_id, plan.ref.lane, plan.ref.question_index)
    return BatchSize(key, plan.question_id, len(plan.cells), planned=True)
