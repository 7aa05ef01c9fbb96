"""What is known about each job, projected from the dispatcher's events.

Each event fills columns of its own, once; the status is generated from them. So events may be repeated, late
or out of order: whatever their order, the row ends up the same, and a job never moves backwards.
"""

from datetime import datetime
from typing import Any, Final, NamedTuple, assert_never

from pydantic_core import to_json
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from parallax.contracts.messages import (
    JobAccepted,
    JobCancelled,
    JobFinished,
    JobRejected,
    JobStarted,
)
from parallax.telemetry import get_logger
from results import events
from results.writing import writing

JobEvent = JobAccepted | JobRejected | JobStarted | JobCancelled | JobFinished

CANCELLED: Final = "cancelled"
"""Code of the reason of a cancellation that a user asked for; deadlines and early stops abort work in the same way,
but then the end of the job says how it ended."""

CONFLICT: Final = "conflict"
"""Code of the rejection of a submission whose id belongs to another job: that job is none of its business."""

log = get_logger(__name__)

_ACCEPT: Final = text("""
    INSERT INTO results.jobs AS j (
        job_id, created_at, name, spec, plan, questions, batches, executions, retry_of, metadata, accepted_at)
    VALUES (:job_id, :now, :name, CAST(:spec AS jsonb), CAST(:plan AS jsonb), :questions, :batches, :executions,
            :retry_of, coalesce(CAST(:spec AS jsonb) -> 'metadata', '{}'), :accepted_at)
    ON CONFLICT (job_id) DO UPDATE SET
        name = excluded.name, spec = excluded.spec, plan = excluded.plan, questions = excluded.questions,
        batches = excluded.batches, executions = excluded.executions, retry_of = excluded.retry_of,
        metadata = excluded.metadata, accepted_at = excluded.accepted_at, problems = '[]'
    WHERE j.accepted_at IS NULL
    RETURNING job_id
""")

_REJECT: Final = text("""
    INSERT INTO results.jobs AS j (job_id, created_at, rejected_at, rejected_reason, problems)
    VALUES (:job_id, :now, :rejected_at, CAST(:reason AS jsonb), CAST(:problems AS jsonb))
    ON CONFLICT (job_id) DO UPDATE SET
        rejected_at = excluded.rejected_at, rejected_reason = excluded.rejected_reason, problems = excluded.problems
    WHERE j.status IN ('submitted', 'rejected') AND coalesce(j.rejected_at < excluded.rejected_at, true)
    RETURNING job_id
""")

_START: Final = text("""
    INSERT INTO results.jobs AS j (job_id, created_at, started_at) VALUES (:job_id, :now, :started_at)
    ON CONFLICT (job_id) DO UPDATE SET started_at = excluded.started_at WHERE j.started_at IS NULL
    RETURNING job_id
""")

_CANCEL: Final = text("""
    INSERT INTO results.jobs AS j (job_id, created_at, cancelled_reason, cancelled_at)
    VALUES (:job_id, :now, CAST(:reason AS jsonb), :cancelled_at)
    ON CONFLICT (job_id) DO UPDATE SET
        cancelled_reason = excluded.cancelled_reason, cancelled_at = excluded.cancelled_at
    WHERE j.cancelled_reason IS NULL
    RETURNING job_id
""")

_FINISH: Final = text("""
    INSERT INTO results.jobs AS j (
        job_id, created_at, outcome, finished_reason, counts, not_started, finished_at)
    VALUES (:job_id, :now, :outcome, CAST(:reason AS jsonb), CAST(:counts AS jsonb), :not_started, :finished_at)
    ON CONFLICT (job_id) DO UPDATE SET
        outcome = excluded.outcome, finished_reason = excluded.finished_reason, counts = excluded.counts,
        not_started = excluded.not_started, finished_at = excluded.finished_at
    WHERE j.outcome IS NULL
    RETURNING job_id
""")


class _Change(NamedTuple):
    """What an event does to its job's row, and how the event is called there."""

    kind: str
    at: datetime
    statement: TextClause
    row: dict[str, Any]


async def project(engine: AsyncEngine, event: JobEvent, now: datetime) -> None:
    """Note one event about a job. Idempotent: what is known already changes nothing.

    Raises:
        PoisonError: The event cannot be stored.
    """
    if isinstance(event, JobRejected) and (event.job_id is None or event.reason.code == CONFLICT):
        log.warning("submission_rejected", job=event.job_id, code=event.reason.code, reason=event.reason.message)
        return
    async with writing(engine) as connection:
        await _apply(connection, event, now)


def _change(event: JobEvent) -> _Change:
    match event:
        case JobAccepted():
            row = event.model_dump(include={"name", "questions", "batches", "executions", "retry_of", "accepted_at"})
            row |= {"spec": _json(event.job), "plan": _json(event.plan)}
            return _Change("job.accepted", event.accepted_at, _ACCEPT, row)
        case JobRejected():
            row = {"rejected_at": event.rejected_at, "reason": _json(event.reason), "problems": _json(event.problems)}
            return _Change("job.rejected", event.rejected_at, _REJECT, row)
        case JobStarted():
            return _Change("job.started", event.started_at, _START, {"started_at": event.started_at})
        case JobCancelled():
            by_user = event.reason.code == CANCELLED
            row = {"reason": _json(event.reason), "cancelled_at": event.cancelled_at if by_user else None}
            return _Change("job.cancelled", event.cancelled_at, _CANCEL, row)
        case JobFinished():
            row = event.model_dump(include={"not_started", "finished_at"})
            row |= {"outcome": event.outcome.value, "reason": _json(event.reason), "counts": _json(event.counts)}
            return _Change("job.finished", event.finished_at, _FINISH, row)
        case _:
            assert_never(event)


async def _apply(connection: AsyncConnection, event: JobEvent, now: datetime) -> None:
    """Change the job's row, and, if that was news, add an event."""
    assert event.job_id is not None
    change = _change(event)
    news = await connection.execute(change.statement, {**change.row, "job_id": event.job_id, "now": now})
    if news.first() is not None:
        data = event.model_dump_json(exclude={"job"})
        await events.append(connection, [events.Event(event.job_id, change.kind, data, change.at)])


def _json(value: object) -> str:
    return to_json(value).decode()
