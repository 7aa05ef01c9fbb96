"""Lists of jobs, and all about one of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from pydantic import JsonValue
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import Batch, JobBrief, JobStatus, LaneProgress, Progress, Running
from parallax.contracts.messages import Problem
from parallax.contracts.model import read_document
from parallax.contracts.outcomes import Reason
from parallax.contracts.plan import JobPlan
from results.api.queries.reading import STATUSES, Row, counts, row, rows, where
from results.api.queries.summaries import REPLACED

MAX_OPEN_BATCHES: Final = 10
"""A lane has one open batch; more are seen for the moment between two events."""
MAX_RUNNING: Final = 500
LISTED_METADATA_BYTES: Final = 4 * 1024
"""Larger metadata is left out of lists: a page of 200 jobs would have 13 MB of it."""

_COUNTED: Final = """
LEFT JOIN LATERAL (
    SELECT sum(completed) AS completed, sum(failed) AS failed, sum(timed_out) AS timed_out,
           sum(cancelled) AS cancelled
      FROM results.batches WHERE batches.job_id = jobs.job_id
) AS counted ON true
"""
_OWN: Final = """
SELECT jobs.job_id, name, status, reason, created_at, submitted_at, accepted_at, started_at, finished_at,
       rejected_at, questions, batches, executions, retry_of
"""
# The stored size, which compression makes smaller, is looked at first: it costs nothing, whatever the metadata holds.
_LISTED: Final = f"""
    pg_column_size(metadata) <= {LISTED_METADATA_BYTES}
        AND octet_length(CAST(metadata AS text)) <= {LISTED_METADATA_BYTES}
"""
_BRIEF: Final = f"""
{_OWN}, CASE WHEN {_LISTED} THEN metadata ELSE '{{}}' END AS metadata, NOT ({_LISTED}) AS metadata_omitted,
        counted.completed, counted.failed, counted.timed_out, counted.cancelled
"""


class JobFilter(NamedTuple):
    """Which jobs a list holds."""

    status: tuple[str, ...] = ()
    name: str | None = None
    """Text that the name holds, in upper or lower case."""
    metadata: tuple[tuple[str, tuple[JsonValue, ...]], ...] = ()
    """Keys of the metadata, each with the values of which one must be there."""
    created_after: datetime | None = None
    created_before: datetime | None = None
    retry_of: str | None = None


class JobKey(NamedTuple):
    """Where a page of jobs ended."""

    created_at: datetime
    job_id: str


async def page(connection: AsyncConnection, chosen: JobFilter, after: JobKey | None, limit: int) -> list[JobBrief]:
    """The newest jobs of a filter, behind ``after``."""
    conditions, values = _conditions(chosen)
    if after is not None:
        conditions.append("(created_at, job_id) < (:after_at, :after_id)")
        values |= {"after_at": after.created_at, "after_id": after.job_id}
    # Each status has an ordered index, so the newest of each are read and merged: no job of another status is.
    found = " UNION ALL ".join(
        f"(SELECT * FROM results.jobs {where([*conditions, *extra])}"  # noqa: S608 - fixed fragments, bound values
        " ORDER BY created_at DESC, job_id DESC LIMIT :limit)"
        for extra in _per_status(chosen.status, values)
    )
    statement = f"""
        {_BRIEF} FROM (SELECT * FROM ({found}) AS found ORDER BY created_at DESC, job_id DESC LIMIT :limit) AS jobs
        {_COUNTED} ORDER BY created_at DESC, job_id DESC
    """  # noqa: S608 - fixed fragments, bound values
    clause = text(statement).bindparams(
        *(bindparam(name, type_=JSONB) for name in values if name.startswith("metadata"))
    )
    found_rows = (await connection.execute(clause, {**values, "limit": limit})).mappings().all()
    return [brief(record) for record in found_rows]


def _conditions(chosen: JobFilter) -> tuple[list[str], dict[str, Any]]:
    conditions, values = ["true"], dict[str, Any]()
    if chosen.name is not None:
        conditions.append("strpos(lower(name), lower(:name)) > 0")
        values["name"] = chosen.name
    if chosen.retry_of is not None:
        conditions.append("retry_of = :retry_of")
        values["retry_of"] = chosen.retry_of
    if chosen.created_after is not None:
        conditions.append("created_at >= :created_after")
        values["created_after"] = chosen.created_after
    if chosen.created_before is not None:
        conditions.append("created_at < :created_before")
        values["created_before"] = chosen.created_before
    for number, (key, choices) in enumerate(chosen.metadata):
        names = [f"metadata_{number}_{place}" for place in range(len(choices))]
        conditions.append("(" + " OR ".join(f"metadata @> :{name}" for name in names) + ")")
        values |= {name: {key: choice} for name, choice in zip(names, choices, strict=True)}
    return conditions, values


def _per_status(statuses: Sequence[str], values: dict[str, Any]) -> list[list[str]]:
    values |= {f"status_{number}": status for number, status in enumerate(statuses)}
    return [[f"status = :status_{number}"] for number in range(len(statuses))] or [[]]


def brief(record: Row) -> JobBrief:
    """A job in a list."""
    return JobBrief(**brief_fields(record), metadata_omitted=record["metadata_omitted"], counts=counts(record))


def brief_fields(record: Row) -> dict[str, Any]:
    """The fields that a job in a list and a job by itself share, all but what is counted in batches."""
    reason = record["reason"]
    return {
        "id": record["job_id"],
        "name": record["name"],
        "status": JobStatus(record["status"]),
        "reason": read_document(Reason, reason) if reason else None,
        "created_at": record["created_at"],
        "submitted_at": record["submitted_at"],
        "accepted_at": record["accepted_at"],
        "started_at": record["started_at"],
        "finished_at": record["finished_at"] or record["rejected_at"],
        "questions": record["questions"],
        "batches": record["batches"],
        "executions": record["executions"],
        "retry_of": record["retry_of"],
        "metadata": record["metadata"],
    }


async def one_brief(connection: AsyncConnection, job_id: str) -> JobBrief | None:
    """A job as lists show it."""
    statement = f"{_BRIEF} FROM results.jobs {_COUNTED} WHERE jobs.job_id = :job_id"
    found = await row(connection, statement, {"job_id": job_id})
    return None if found is None else brief(found)


class JobRecord(NamedTuple):
    """A job's own row, read."""

    fields: dict[str, Any]
    """Those of ``JobBrief`` but its counts, which ``lanes`` tells."""
    plan: JobPlan | None
    spec: dict[str, JsonValue] | None
    problems: tuple[Problem, ...]
    not_started: int | None
    place_in_queue: int | None
    replaced: int
    """As in ``LedgerVersion``."""


async def record(connection: AsyncConnection, job_id: str) -> JobRecord | None:
    """Everything that is stored about a job in its own row, and its place in the waiting line."""
    statement = f"""
        {_OWN}, metadata, plan, spec, problems, not_started, {REPLACED},
        CASE WHEN status = 'queued' THEN (
            SELECT count(*) FROM results.jobs AS ahead
             WHERE ahead.status = 'queued' AND (ahead.accepted_at, ahead.job_id) <= (jobs.accepted_at, jobs.job_id)
        ) END AS place_in_queue
        FROM results.jobs WHERE jobs.job_id = :job_id
    """  # noqa: S608 - fixed fragments, bound values
    found = await row(connection, statement, {"job_id": job_id})
    if found is None:
        return None
    return JobRecord(
        fields=brief_fields(found),
        plan=read_document(JobPlan, found["plan"]) if found["plan"] else None,
        spec=found["spec"],
        problems=tuple(read_document(Problem, p) for p in found["problems"]),
        not_started=found["not_started"],
        place_in_queue=found["place_in_queue"],
        replaced=found["replaced"],
    )


async def with_retries(connection: AsyncConnection, job_id: str, limit: int) -> tuple[str, ...]:
    """A job and the jobs that repeat parts of it, or of one of those, from oldest to newest; ``limit`` at most.

    Each is listed once, even when jobs claim to repeat each other.
    """
    statement = """
        WITH RECURSIVE found (job_id) AS (
            SELECT CAST(:job_id AS text) COLLATE "C"
            UNION
            SELECT jobs.job_id FROM results.jobs JOIN found ON jobs.retry_of = found.job_id)
        SELECT jobs.job_id FROM (SELECT job_id FROM found LIMIT :limit) AS listed
          JOIN results.jobs USING (job_id)
         ORDER BY jobs.job_id <> :job_id, jobs.created_at, jobs.job_id
    """
    return tuple(record["job_id"] for record in await rows(connection, statement, {"job_id": job_id, "limit": limit}))


async def plan(connection: AsyncConnection, job_id: str) -> tuple[bool, JobPlan | None]:
    """Whether a job is known, and its plan once it is accepted."""
    found = await row(connection, "SELECT plan FROM results.jobs WHERE job_id = :job_id", {"job_id": job_id})
    if found is None:
        return False, None
    return True, read_document(JobPlan, found["plan"]) if found["plan"] else None


_BATCH: Final = """
SELECT lane, question_index, question_id, expected, recorded, completed, failed, timed_out, cancelled,
       opened_at, deadline_at, completed_at, closed_status
  FROM results.batches
"""


class BatchKey(NamedTuple):
    """Where a page of batches ended."""

    question_index: int
    lane: str


async def batches(connection: AsyncConnection, job_id: str, after: BatchKey | None, limit: int) -> list[Batch]:
    """Batches of a job by question and lane, behind ``after``."""
    conditions, values = ["job_id = :job_id"], {"job_id": job_id, "limit": limit}
    if after is not None:
        conditions.append("(question_index, lane) > (:after_index, :after_lane)")
        values |= {"after_index": after.question_index, "after_lane": after.lane}
    statement = f"{_BATCH} {where(conditions)} ORDER BY question_index, lane LIMIT :limit"
    return [_batch(record) for record in await rows(connection, statement, values)]


async def lanes(connection: AsyncConnection, job_id: str) -> tuple[LaneProgress, ...]:
    """How far each lane of a job is."""
    totals = await rows(
        connection,
        """
        SELECT lane, count(*) AS opened, count(*) FILTER (WHERE recorded >= expected) AS full_batches,
               sum(completed) AS completed, sum(failed) AS failed, sum(timed_out) AS timed_out,
               sum(cancelled) AS cancelled
          FROM results.batches WHERE job_id = :job_id GROUP BY lane ORDER BY lane
        """,
        {"job_id": job_id},
    )
    ended = all(total["opened"] == total["full_batches"] for total in totals)
    open_batches = [] if ended else await _open_batches(connection, job_id)
    return tuple(
        LaneProgress(
            lane=total["lane"],
            batches_opened=total["opened"],
            batches_completed=total["full_batches"],
            counts=counts(total),
            open=tuple(b for b in open_batches if b.lane == total["lane"])[:MAX_OPEN_BATCHES],
        )
        for total in totals
    )


async def _open_batches(connection: AsyncConnection, job_id: str) -> list[Batch]:
    statement = f"{_BATCH} WHERE job_id = :job_id AND recorded < expected ORDER BY question_index, lane LIMIT 200"
    return [_batch(record) for record in await rows(connection, statement, {"job_id": job_id})]


def _batch(record: Row) -> Batch:
    shared = {name: value for name, value in record.items() if name not in STATUSES}
    return Batch(**shared, counts=counts(record))


async def running(connection: AsyncConnection, job_id: str, alive_since: datetime) -> tuple[Running, ...]:
    """What live executors hold of a job."""
    found = await rows(
        connection,
        """
        SELECT executor_id, region, held ->> 'execution_id' AS execution_id, held ->> 'question_id' AS question_id,
               held ->> 'model_id' AS model_id, held ->> 'since' AS since
          FROM results.executors, jsonb_array_elements(running) AS held
         WHERE received_at >= :alive_since AND NOT stopping AND held ->> 'job_id' = :job_id
         ORDER BY region, since, execution_id LIMIT :limit
        """,
        {"job_id": job_id, "alive_since": alive_since, "limit": MAX_RUNNING},
    )
    return tuple(Running.model_validate(dict(record)) for record in found)


class Moment(NamedTuple):
    """Where a job is, for its followers."""

    progress: Progress
    over: bool
    """Whether its last event is stored: no further one will come."""


async def moment(connection: AsyncConnection, job_id: str) -> Moment | None:
    """Where a job is now, or ``None`` for an unknown one."""
    statement = f"""
        SELECT status, outcome IS NOT NULL OR status = 'rejected' AS over, executions,
               counted.completed, counted.failed, counted.timed_out, counted.cancelled
          FROM results.jobs {_COUNTED} WHERE jobs.job_id = :job_id
    """  # noqa: S608 - fixed fragments, bound values
    found = await row(connection, statement, {"job_id": job_id})
    if found is None:
        return None
    progress = Progress(status=JobStatus(found["status"]), executions=found["executions"], counts=counts(found))
    return Moment(progress=progress, over=found["over"])


async def events(connection: AsyncConnection, job_id: str, after: int, limit: int) -> Sequence[Row]:
    """Events of a job behind a number: ``number``, ``kind`` and ``data``, in their order and without gaps."""
    return await rows(
        connection,
        """
        SELECT number, kind, data FROM results.events
         WHERE job_id = :job_id AND number > :after ORDER BY number LIMIT :limit
        """,
        {"job_id": job_id, "after": after, "limit": limit},
    )
