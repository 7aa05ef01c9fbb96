"""The row of a job that was submitted here, written before anyone else has heard of it."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.submission import CheckedJob
from results.api.queries.reading import row

_INSERT: Final = text(
    """
    INSERT INTO results.jobs (job_id, created_at, submitted_at, name, metadata, submission_sha256, retry_of,
                              questions, batches, executions)
    VALUES (:job_id, :at, :at, :name, :metadata, :sha256, :retry_of, :questions, :batches, :executions)
    ON CONFLICT (job_id) DO NOTHING
    """
).bindparams(bindparam("metadata", type_=JSONB))


class Known(NamedTuple):
    """What is known about a job id."""

    sha256: str | None
    """Hash of the submission, or ``None`` for a job that came as a message."""
    status: str


async def insert(connection: AsyncConnection, job_id: str, job: CheckedJob, sha256: str, at: datetime) -> bool:
    """Store a submission; false when the id is known already.

    Waits for a concurrent submission of the same id to commit or roll back.
    """
    result = await connection.execute(
        _INSERT,
        {
            "job_id": job_id,
            "at": at,
            "name": job.head.name,
            "metadata": job.head.metadata,
            "sha256": sha256,
            "retry_of": job.head.retry_of,
            "questions": job.questions,
            "batches": job.batches,
            "executions": job.executions,
        },
    )
    return bool(result.rowcount)


async def known(connection: AsyncConnection, job_id: str) -> Known:
    """What is known about a job that ``insert`` found to exist."""
    found = await row(
        connection, "SELECT submission_sha256, status FROM results.jobs WHERE job_id = :job_id", {"job_id": job_id}
    )
    assert found is not None, "jobs are never deleted"
    return Known(found["submission_sha256"], found["status"])
