"""What happens to a job, as it happens."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header
from starlette.responses import StreamingResponse

from results.api.access import ApiParts, Reader
from results.api.documented import STREAMED, problems
from results.api.negotiation import produces
from results.api.parameters import JobPath
from results.api.queries.reading import reading
from results.api.routes.jobs import require_job
from results.api.streams import event_number

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], dependencies=[Reader])


@router.get(
    "/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    dependencies=[Depends(produces("text/event-stream"))],
    responses={200: STREAMED, **problems(401, 403, 404, 406, 422, 500, 503)},
)
async def follow_job(
    api: ApiParts,
    job_id: JobPath,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Read on behind this event.")] = None,
) -> StreamingResponse:
    """Every event from the first, or behind `Last-Event-ID`: `job.accepted`, `job.started`, `batch.opened`,
    `batch.completed`, `job.cancelled`, `job.finished` or `job.rejected`, each with an id, and `progress` in between
    without one. The stream ends with `done`.
    """
    after = event_number(last_event_id)
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
    unbuffered = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(api.streams.follow(job_id, after), media_type="text/event-stream", headers=unbuffered)
