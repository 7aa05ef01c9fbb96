"""What changes something: submit, cancel, retry. Each publishes a message; the dispatcher decides."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response

from parallax.contracts.answers import Job, Retried, Submitted
from parallax.contracts.messages import CancelJob
from results.api import bodies
from results.api.access import ApiParts, requires
from results.api.documented import JOB_BODY, optional_body, problems
from results.api.keys import Scope
from results.api.negotiation import produces
from results.api.parameters import JobPath
from results.api.queries import jobs
from results.api.queries.reading import reading
from results.api.requests import CancelRequest, RetryRequest, StorableText
from results.api.retrying import derived
from results.api.routes.jobs import job_view, require_job
from results.api.submitting import checked, job_id_for, submit

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    dependencies=[Depends(produces("application/json"))],
    responses=problems(400, 401, 403, 406, 409, 413, 415, 422, 500, 503),
)
MaySubmit = Annotated[str, Depends(requires(Scope.SUBMIT))]
MayCancel = Annotated[str, Depends(requires(Scope.CANCEL))]
IdempotencyKey = Annotated[
    StorableText | None,
    Header(
        min_length=1,
        max_length=200,
        description="Makes the request safe to repeat. One that can be a job's id becomes the job's id.",
    ),
]


@router.post("", status_code=202, summary="Submit a job", openapi_extra=JOB_BODY)
async def submit_job(
    request: Request, response: Response, api: ApiParts, principal: MaySubmit, idempotency_key: IdempotencyKey = None
) -> Submitted:
    """The job can be read at once, under `Location`; the dispatcher accepts or rejects it a moment later.

    The same body with the same key gives the same answer however often it is sent; another body is a conflict.
    """
    document = await bodies.job_document(request)
    job = await checked(api, document)
    accepted = await submit(api, job, document, job_id_for(job, idempotency_key, principal))
    response.headers["Location"] = f"/v1/jobs/{accepted.job_id}"
    return Submitted(
        id=accepted.job_id, status=accepted.status, executions=accepted.executions, batches=accepted.batches
    )


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    responses=problems(404),
    openapi_extra=optional_body("CancelRequest", {"reason": "wrong model"}),
)
async def cancel_job(request: Request, api: ApiParts, job_id: JobPath, _: MayCancel) -> Job:
    """Running calls are aborted at the provider and nothing of the job starts any more. Repeating it, or cancelling
    a job that has ended, changes nothing. The answer is the job as it stands; it is cancelled a moment later.
    """
    wanted = await bodies.optional(request, CancelRequest)
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
        moment = await jobs.moment(connection, job_id)
    if moment is not None and not moment.over:
        await api.bus.publish(CancelJob(job_id=job_id, reason=wanted.reason, requested_at=api.clock.now()))
    return await job_view(api, job_id)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    summary="Repeat what failed",
    responses=problems(404),
    openapi_extra=optional_body("RetryRequest", {"status": ["failed", "timed_out"]}),
)
async def retry_job(  # noqa: PLR0917 - FastAPI passes them by name
    request: Request,
    response: Response,
    api: ApiParts,
    job_id: JobPath,
    principal: MaySubmit,
    idempotency_key: IdempotencyKey = None,
) -> Retried:
    """A new job of exactly those executions, linked to this one by `retry_of`. Without a body: all that failed or
    timed out. A `job_id` in the body or an `Idempotency-Key` makes the request safe to repeat.
    """
    wanted = await bodies.optional(request, RetryRequest)
    document, only = await derived(api, job_id, wanted)
    job = await checked(api, document)
    accepted = await submit(api, job, document, wanted.job_id or job_id_for(job, idempotency_key, principal))
    response.headers["Location"] = f"/v1/jobs/{accepted.job_id}"
    return Retried(
        id=accepted.job_id,
        status=accepted.status,
        retry_of=job_id,
        executions=accepted.executions,
        batches=accepted.batches,
        only=only,
    )
