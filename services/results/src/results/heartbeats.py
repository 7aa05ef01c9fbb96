"""Which executors are alive and what they hold, from their heartbeats."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.contracts.heartbeat import ExecutorHeartbeat
from results.witnesses import Witness
from results.writing import writing

ALIVE_S: Final = 15.0
"""An executor is taken for dead after this long without a heartbeat: three of them, sent every five seconds."""
FORGET_S: Final = 3600.0
"""How long an executor that is gone can still be looked at."""

GAP_S: Final = 30.0
"""Heartbeats further apart than this have a gap: more were lost than may get lost by chance."""

_BEAT: Final = text("""
    INSERT INTO results.executors AS e (
        executor_id, region, budget, running, models, endpoint_state, last_error, stopping, started_at, sent_at,
        received_at, fences, steady_since)
    VALUES (:executor_id, :region, :budget, CAST(:running AS jsonb), CAST(:models AS jsonb), :endpoint_state,
            :last_error, :stopping, :started_at, :sent_at, :received_at, CAST(:fences AS jsonb), :received_at)
    ON CONFLICT (executor_id) DO UPDATE SET
        region = excluded.region, budget = excluded.budget, running = excluded.running, models = excluded.models,
        endpoint_state = excluded.endpoint_state, last_error = excluded.last_error, stopping = excluded.stopping,
        started_at = excluded.started_at, sent_at = excluded.sent_at, received_at = excluded.received_at,
        fences = excluded.fences,
        steady_since = CASE
            WHEN e.started_at = excluded.started_at AND e.received_at >= :unless_before THEN e.steady_since
            ELSE excluded.received_at
        END
    WHERE e.sent_at <= excluded.sent_at
""")

_FORGET: Final = text("DELETE FROM results.executors WHERE received_at < :before")

_HELD: Final = text("""
    SELECT DISTINCT CAST(r ->> 'execution_id' AS uuid)
    FROM results.executors e, jsonb_array_elements(e.running) AS r
    WHERE e.received_at > :since AND NOT e.stopping AND r ->> 'job_id' = :job_id
""")

_WITNESSES: Final = text("""
    SELECT e.region, e.received_at, coalesce(e.steady_since, e.received_at) AS steady_since, e.stopping,
           a.answer IS NOT NULL AS answers,
           ARRAY(SELECT CAST(x AS uuid) FROM jsonb_array_elements_text(a.answer) AS x) AS executions
    FROM results.executors e
    LEFT JOIN LATERAL (
        SELECT f -> 'executions' AS answer FROM jsonb_array_elements(e.fences) AS f WHERE f ->> 'token' = :token
        LIMIT 1
    ) a ON true
""")


_LISTS: Final = frozenset({"running", "models", "fences"})


async def beat(engine: AsyncEngine, heartbeat: ExecutorHeartbeat, now: datetime) -> None:
    """Keep the newest heartbeat of an executor, and forget executors that are long gone.

    Idempotent: an older heartbeat than the one that is kept changes nothing. Ages are counted from the receipt,
    on this service's clock.
    """
    row = heartbeat.model_dump(exclude={"kind", "version", *_LISTS})
    row |= {name: to_json(getattr(heartbeat, name)).decode() for name in _LISTS}
    row |= {"received_at": now, "unless_before": now - timedelta(seconds=GAP_S)}
    async with writing(engine) as connection:
        await connection.execute(_BEAT, row)
        await connection.execute(_FORGET, {"before": now - timedelta(seconds=FORGET_S)})


async def running(connection: AsyncConnection, job_id: str, now: datetime) -> set[UUID]:
    """The executions of a job that live executors say they hold."""
    rows = await connection.execute(_HELD, {"job_id": job_id, "since": now - timedelta(seconds=ALIVE_S)})
    return set(rows.scalars())


async def witnesses(connection: AsyncConnection, token: str) -> list[Witness]:
    """Every executor heard of in the last hour, and what it answers to a fence."""
    return [
        Witness(
            region=row.region,
            received_at=row.received_at,
            steady_since=row.steady_since,
            stopping=row.stopping,
            answer=frozenset(row.executions) if row.answers else None,
        )
        for row in await connection.execute(_WITNESSES, {"token": token})
    ]
