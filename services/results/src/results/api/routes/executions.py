"""Executions of a job: pages, whole facts, exports."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from parallax.contracts.answers import Execution, ExecutionPage
from results.api import cursors
from results.api.access import ApiParts, Reader
from results.api.documented import EXPORTED, problems
from results.api.exports import Format, export
from results.api.negotiation import produces
from results.api.parameters import Cursor, JobPath, PageSize, execution_filter
from results.api.problems import ApiError, Kind
from results.api.queries import executions
from results.api.queries.executions import ExecutionFilter, ExecutionKey, key_of
from results.api.queries.reading import reading
from results.api.routes.jobs import require_job

router = APIRouter(
    prefix="/v1/jobs/{job_id}",
    tags=["executions"],
    dependencies=[Reader],
    responses=problems(401, 403, 404, 422, 500, 503),
)
AsJson = Depends(produces("application/json"))
Chosen = Annotated[ExecutionFilter, Depends(execution_filter)]


@router.get("/executions", summary="The executions of a job, in order", dependencies=[AsJson], responses=problems(406))
async def list_executions(
    api: ApiParts, job_id: JobPath, chosen: Chosen, cursor: Cursor = None, limit: PageSize = 100
) -> ExecutionPage:
    """By question, model, region and sample. Each filter may be repeated; it holds when any of its values does."""
    filters = {"job": job_id, **chosen._asdict()}
    after = cursors.decode(cursor, filters, ExecutionKey)
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
        found = await executions.page(connection, job_id, chosen, after, limit + 1)
    items = tuple(found[:limit])
    further = len(found) > limit
    return ExecutionPage(items=items, next_cursor=cursors.encode(key_of(items[-1]), filters) if further else None)


@router.get("/executions/{execution_id}", summary="The whole fact", dependencies=[AsJson], responses=problems(406))
async def get_execution(api: ApiParts, job_id: JobPath, execution_id: UUID) -> Execution:
    """Prompt, answer, error, attempts and receipt of one execution."""
    async with reading(api.engine) as connection:
        found = await executions.one(connection, job_id, execution_id)
    if found is None:
        raise ApiError(Kind.NOT_FOUND, f"job {job_id!r} has no execution {execution_id} that has ended")
    return found


@router.get(
    "/export",
    summary="Every execution of a job as a file",
    response_class=StreamingResponse,
    responses={200: EXPORTED, **problems(406)},
)
async def get_export(
    api: ApiParts,
    job_id: JobPath,
    chosen: Chosen,
    file_format: Annotated[Format, Query(alias="format", description="What the file is.")] = Format.JSONL,
) -> StreamingResponse:
    """Streamed in the order of the job, whatever its size. In CSV, cells that a spreadsheet would run are defused."""
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
    return export(api.engine, job_id, chosen, file_format)
