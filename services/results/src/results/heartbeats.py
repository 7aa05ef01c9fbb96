"""Which executors are alive and what they run, from their heartbeats."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.contracts.messages import ExecutorHeartbeat
from results.writing import writing

ALIVE_S: Final = 15.0
"""An executor is taken for dead after this long without a heartbeat: three of them, sent every five seconds."""
FORGET_S: Final = 3600.0
"""How long an executor that is gone can still be looked at."""

_BEAT: Final = text("""
    INSERT INTO results.executors AS e (
        executor_id, region, budget, running, models, endpoint_state, last_error, stopping, started_at, sent_at,
        received_at)
    VALUES (:executor_id, :region, :budget, CAST(:running AS jsonb), CAST(:models AS jsonb), :endpoint_state,
            :last_error, :stopping, :started_at, :sent_at, :received_at)
    ON CONFLICT (executor_id) DO UPDATE SET
        region = excluded.region, budget = excluded.budget, running = excluded.running, models = excluded.models,
        endpoint_state = excluded.endpoint_state, last_error = excluded.last_error, stopping = excluded.stopping,
        started_at = excluded.started_at, sent_at = excluded.sent_at, received_at = excluded.received_at
    WHERE e.sent_at <= excluded.sent_at
""")

_FORGET: Final = text("DELETE FROM results.executors WHERE received_at < :before")

_RUNNING: Final = text("""
    SELECT DISTINCT CAST(r ->> 'execution_id' AS uuid)
    FROM results.executors e, jsonb_array_elements(e.running) AS r
    WHERE e.received_at > :since AND NOT e.stopping AND r ->> 'job_id' = :job_id
""")


async def beat(engine: AsyncEngine, heartbeat: ExecutorHeartbeat, now: datetime) -> None:
    """Keep the newest heartbeat of an executor, and forget executors that are long gone.

    Idempotent: an older heartbeat than the one that is kept changes nothing. Ages are counted from the receipt,
    on this service's clock.
    """
    row = heartbeat.model_dump(exclude={"kind", "version", "running", "models"})
    row |= {"running": to_json(heartbeat.running).decode(), "models": to_json(heartbeat.models).decode()}
    async with writing(engine) as connection:
        await connection.execute(_BEAT, row | {"received_at": now})
        await connection.execute(_FORGET, {"before": now - timedelta(seconds=FORGET_S)})


async def running(connection: AsyncConnection, job_id: str, now: datetime) -> set[UUID]:
    """The executions of a job that live executors say they run."""
    rows = await connection.execute(_RUNNING, {"job_id": job_id, "since": now - timedelta(seconds=ALIVE_S)})
    return set(rows.scalars())
