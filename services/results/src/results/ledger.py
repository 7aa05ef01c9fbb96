"""The ledger: first fact wins.

A fact is written once; a repetition changes nothing. Only an observed fact replaces a synthetic one, because a
paid answer is never thrown away. The counters of batches move by what was really written, in the same
transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from results import batches
from results.batches import Batch, BatchSize
from results.facts import Fact, first_facts
from results.writing import writing

_RECORD: Final = text(f"""
    WITH written AS (
        INSERT INTO results.executions AS e (
            execution_id, job_id, lane, question_index, question_id, model_id, model, region, sample, status,
            observed, provider_id, messages, output, finish_reason, usage, receipt, error, attempts, started_at,
            completed_at)
        SELECT f.execution_id, f.batch ->> 'job_id', f.batch ->> 'lane', (f.batch ->> 'question_index')::integer,
               f.question_id, f.model_id, f.model, f.region, f.sample, f.status, f.observed, f.provider_id,
               f.messages, f.output, f.finish_reason, f.usage, f.receipt, f.error, f.attempts, f.started_at,
               f.completed_at
        FROM jsonb_to_recordset(CAST(CAST(:facts AS text) AS jsonb)) AS f (
            execution_id uuid, batch jsonb, question_id text, model_id text, model text, region text,
            sample integer, status text, observed boolean, provider_id text, messages jsonb, output jsonb,
            finish_reason text, usage jsonb, receipt jsonb, error jsonb, attempts jsonb, started_at timestamptz,
            completed_at timestamptz)
        ON CONFLICT (execution_id) DO UPDATE SET
            replaced_status = e.status, observed = true, status = excluded.status, model = excluded.model,
            provider_id = excluded.provider_id, messages = excluded.messages, output = excluded.output,
            finish_reason = excluded.finish_reason, usage = excluded.usage, receipt = excluded.receipt,
            error = excluded.error, attempts = excluded.attempts, started_at = excluded.started_at,
            completed_at = excluded.completed_at, recorded_at = clock_timestamp()
        WHERE NOT e.observed AND excluded.observed
            AND (e.lane, e.question_index) = (excluded.lane, excluded.question_index)
        RETURNING e.job_id, e.lane, e.question_index, e.status, e.replaced_status
    ), moved AS (
        SELECT job_id, lane, question_index,
               sum((status = 'completed')::int - coalesce(replaced_status = 'completed', false)::int) AS completed,
               sum((status = 'failed')::int - coalesce(replaced_status = 'failed', false)::int) AS failed,
               sum((status = 'timed_out')::int - coalesce(replaced_status = 'timed_out', false)::int) AS timed_out,
               sum((status = 'cancelled')::int - coalesce(replaced_status = 'cancelled', false)::int) AS cancelled
        FROM written GROUP BY job_id, lane, question_index
    )
    UPDATE results.batches b SET
        completed = b.completed + m.completed, failed = b.failed + m.failed,
        timed_out = b.timed_out + m.timed_out, cancelled = b.cancelled + m.cancelled
    FROM moved m
    WHERE (b.job_id, b.lane, b.question_index) = (m.job_id, m.lane, m.question_index)
    RETURNING {batches.COLUMNS}
""")  # noqa: S608 - made of constants


async def record(engine: AsyncEngine, facts: Sequence[Fact], now: datetime) -> list[Batch]:
    """Write some facts in one transaction; returns every full batch among those they belong to.

    A full batch is returned also when nothing was new: its signal may have been lost after the commit. Repeating
    the call, or any part of it, is harmless.

    Raises:
        UnavailableError: The database is away; repeat.
        PoisonError: One of the facts cannot be stored; none was.
    """
    chosen = first_facts(facts)
    document = "[" + ",".join(fact.document for fact in chosen) + "]"
    sizes = [BatchSize(fact.batch, fact.question_id, fact.batch_size) for fact in chosen]
    async with writing(engine) as connection:
        locked = {batch.key: batch for batch in await batches.lock(connection, sizes)}
        moved = await connection.execute(_RECORD, {"facts": document})
        locked |= {batch.key: batch for batch in map(batches.of_row, moved)}
        full = await batches.fill(connection, locked.values(), now)
    batches.log_fresh(full, now)
    return full
