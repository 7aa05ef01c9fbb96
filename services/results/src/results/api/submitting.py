"""Takes jobs in: checked like every job, stored as ``submitted``, then published to the dispatcher."""

import hashlib
import json
import re
import secrets
from typing import Final, NamedTuple

from parallax.catalog import offer_of
from parallax.contracts.answers import JobStatus
from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.messages import EncodedSubmitJob
from parallax.contracts.model import read
from parallax.contracts.problem import Problem
from parallax.contracts.submission import OFFER, CheckedJob, Verdict, judge
from parallax.db.engine import transaction
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger
from parallax.worker.process import LARGE_BYTES, WorkerFailedError
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


async def checked(api: Api, document: bytes) -> CheckedJob:
    """The job in a document. A large one is checked in a process of its own, so that other requests go on.

    Raises:
        ApiError: It is too large or no JSON, or it breaks rules; every one is listed.
        UnavailableError: It is large, and no process can be started now.
    """
    if len(document) > MAX_JOB_BYTES:
        raise _too_large(len(document))
    verdict = await _verdict(api, document)
    if verdict.not_json is not None:
        raise ApiError(Kind.INVALID_JSON, verdict.not_json)
    if verdict.job is None:
        raise invalid_job(verdict.problems)
    return verdict.job


async def _verdict(api: Api, document: bytes) -> Verdict:
    offer = offer_of(api.catalog)
    if len(document) <= LARGE_BYTES:
        return judge(document, offer)
    try:
        (verdict,) = await api.worker.run(OFFER.dump_json(offer), document)
    except WorkerFailedError as error:
        return Verdict(problems=(Problem(pointer="", message=str(error)),))
    return read(Verdict, verdict)


def job_id_for(job: CheckedJob, idempotency_key: str | None, principal: str) -> str:
    """The id of a submission: the client's own, one that follows from its idempotency key, or a new one.

    A key that can be a job's id is the job's id. Any other belongs to whoever sent it.
    """
    if idempotency_key is None:
        slug = _NOT_IN_IDS.sub("-", job.head.name.lower()).strip("-")[:MAX_SLUG_CHARS].strip("-") or "job"
        return f"{slug}-{secrets.token_hex(6)}"
    if _JOB_ID.fullmatch(idempotency_key):
        return idempotency_key
    return f"job-{hashlib.sha256(json.dumps([principal, idempotency_key]).encode()).hexdigest()[:32]}"


async def submit(api: Api, job: CheckedJob, document: bytes, job_id: str) -> Accepted:
    """Store the submission of the job in a document, then publish it.

    Nothing of the database is held while the broker thinks.

    When the broker does not confirm, the job stays ``submitted`` until the same request comes again, which publishes
    it again: the dispatcher takes the same job only once. Repeating the request at any time gives the same answer.

    Raises:
        ApiError: The id belongs to a job with other content, the job is too large for a message, or the broker did
            not confirm.
        UnavailableError: The database is away; nothing was published.
    """
    now = api.clock.now()
    digest = job.content_sha256
    message = EncodedSubmitJob.of(job_id, document, now)
    if len(message.body) > MAX_JOB_BYTES:
        raise _too_large(len(message.body))
    async with transaction(api.engine) as connection:
        fresh = await submissions.insert(connection, job_id, job, digest, now)
        known = None if fresh else await submissions.known(connection, job_id)
    if known is not None and known.sha256 != digest:
        raise ApiError(Kind.CONFLICT, f"the id {job_id!r} belongs to a job with other content or of other origin")
    status = JobStatus.SUBMITTED if known is None else JobStatus(known.status)
    if status is JobStatus.SUBMITTED:
        await _publish(api, message)
    return Accepted(job_id, status, job.executions, job.batches)


async def _publish(api: Api, message: EncodedSubmitJob) -> None:
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


def _too_large(size: int) -> ApiError:
    return ApiError(Kind.TOO_LARGE, f"the job is {size} bytes as a message; at most {MAX_JOB_BYTES} are taken")
