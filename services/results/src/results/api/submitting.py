"""Takes jobs in: checked like every job, stored as ``submitted``, then published to the dispatcher."""

import asyncio
import hashlib
import json
import re
import secrets
from typing import Final, NamedTuple

from parallax.catalog import offer_of
from parallax.contracts.answers import JobStatus
from parallax.contracts.intake import check_job
from parallax.contracts.job import MAX_JOB_BYTES, JobSpec
from parallax.contracts.messages import SubmitJob, encode
from parallax.contracts.plan import batch_count, execution_count
from parallax.db.engine import transaction
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger
from results.api.access import Api
from results.api.problems import RETRY_AFTER_S, ApiError, Kind, invalid_job
from results.api.queries import submissions

_JOB_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
_NOT_IN_IDS: Final = re.compile(r"[^a-z0-9]+")
MAX_SLUG_CHARS: Final = 40

_log = get_logger(__name__)


class Accepted(NamedTuple):
    """A submission that the broker has confirmed."""

    job_id: str
    status: JobStatus
    executions: int
    batches: int


async def checked(api: Api, document: object) -> JobSpec:
    """The job in a document. Checked in a thread: the largest takes a second, and others are not to wait for it.

    Raises:
        ApiError: It breaks rules; every one is listed.
    """
    job, found = await asyncio.to_thread(check_job, document, offer_of(api.catalog))
    if job is None:
        raise invalid_job(found)
    return job


def job_id_for(job: JobSpec, idempotency_key: str | None, principal: str) -> str:
    """The id of a submission: the client's own, one that follows from its idempotency key, or a new one.

    A key that can be a job's id is the job's id. Any other belongs to whoever sent it.
    """
    if idempotency_key is None:
        slug = _NOT_IN_IDS.sub("-", job.name.lower()).strip("-")[:MAX_SLUG_CHARS].strip("-") or "job"
        return f"{slug}-{secrets.token_hex(6)}"
    if _JOB_ID.fullmatch(idempotency_key):
        return idempotency_key
    return f"job-{hashlib.sha256(json.dumps([principal, idempotency_key]).encode()).hexdigest()[:32]}"


async def submit(api: Api, job: JobSpec, job_id: str) -> Accepted:
    """Store the submission, then publish it; nothing of the database is held while the broker thinks.

    When the broker does not confirm, the job stays ``submitted`` until the same request comes again, which publishes
    it again: the dispatcher takes the same job only once. Repeating the request at any time gives the same answer.

    Raises:
        ApiError: The id belongs to a job with other content, the job is too large for a message, or the broker did
            not confirm.
        UnavailableError: The database is away; nothing was published.
    """
    now = api.clock.now()
    digest = _digest(job)
    message = SubmitJob(job_id=job_id, job=job, submitted_at=now)
    size = len(encode(message))
    if size > MAX_JOB_BYTES:  # with its id, or with all that a retry names, a job is larger than it was sent
        raise ApiError(Kind.TOO_LARGE, f"the job is {size} bytes as a message; at most {MAX_JOB_BYTES} are taken")
    async with transaction(api.engine) as connection:
        fresh = await submissions.insert(connection, job_id, job, digest, now)
        known = None if fresh else await submissions.known(connection, job_id)
    if known is not None and known.sha256 != digest:
        raise ApiError(Kind.CONFLICT, f"the id {job_id!r} belongs to a job with other content or of other origin")
    status = JobStatus.SUBMITTED if known is None else JobStatus(known.status)
    if status is JobStatus.SUBMITTED:
        await _publish(api, message)
    return Accepted(job_id, status, execution_count(job), batch_count(job))


async def _publish(api: Api, message: SubmitJob) -> None:
    try:
        await api.bus.publish(message)
    except UnavailableError as error:
        _log.warning("submission_not_confirmed", job=message.job_id, error=str(error))
        detail = (
            f"job {message.job_id!r} is stored, but the message broker has not confirmed it; repeat the request with "
            f"the header 'Idempotency-Key: {message.job_id}', which is safe however often it is done"
        )
        headers = {"Retry-After": str(RETRY_AFTER_S), "Location": f"/v1/jobs/{message.job_id}"}
        raise ApiError(Kind.UNAVAILABLE, detail, headers=headers) from error


def _digest(job: JobSpec) -> str:
    """The same for the same job, in whatever order its keys were written and with defaults said or not."""
    document = json.dumps(job.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()
