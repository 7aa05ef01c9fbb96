"""The web page: server-rendered, without a build step and without anything from elsewhere.

It shows what the API tells and changes nothing. Everything that models or users wrote is escaped by the template
engine, and the policy of every answer forbids whatever is not a file of this page, inline code included.
"""

from typing import Annotated, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from parallax.contracts.answers import JobStatus, MatrixRow
from parallax.contracts.model import Name, RegionName
from parallax.contracts.outcomes import ExecutionStatus
from results.api.access import ApiParts, Reader
from results.api.parameters import Cursor, JobPath
from results.api.queries import jobs
from results.api.queries.executions import ExecutionFilter
from results.api.queries.jobs import JobFilter
from results.api.queries.reading import reading
from results.api.requests import StorableText
from results.api.routes.executions import get_execution
from results.api.routes.installation import get_regions
from results.api.routes.jobs import MAX_MERGED_JOBS, job_view, jobs_page, matrix_page, summary_of
from results.web.answering import PageRoute, given, html

JOBS_PER_PAGE: Final = 50
QUESTIONS_PER_PAGE: Final = 20


class _JobFields(BaseModel):
    """What the form over the jobs may ask for."""

    status: Annotated[tuple[JobStatus, ...], Field(max_length=7)]
    name: Annotated[tuple[Annotated[StorableText, Field(max_length=200)], ...], Field(max_length=1)]


class _ExecutionFields(BaseModel):
    """What the form over the answers may ask for."""

    question: Annotated[tuple[Name, ...], Field(max_length=20)]
    model: Annotated[tuple[Name, ...], Field(max_length=20)]
    region: Annotated[tuple[RegionName, ...], Field(max_length=20)]
    status: Annotated[tuple[ExecutionStatus, ...], Field(max_length=4)]


router = APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[Reader])


@router.get("/")
async def show_jobs(request: Request, api: ApiParts, cursor: Cursor = None) -> Response:
    """Jobs, newest first."""
    chosen = _job_choice(request)
    page = await jobs_page(api, chosen, cursor, JOBS_PER_PAGE)
    return html(
        api,
        "jobs.html",
        here="jobs",
        page=page,
        chosen=chosen,
        filtered=chosen != JobFilter(),
        statuses=[status.value for status in JobStatus],
        next=_next(request, page.next_cursor),
    )


@router.get("/regions")
async def show_regions(api: ApiParts) -> Response:
    """What every region can do now."""
    return html(api, "regions.html", here="regions", regions=await get_regions(api))


@router.get("/jobs/{job_id}")
async def show_job(request: Request, api: ApiParts, job_id: JobPath, cursor: Cursor = None) -> Response:
    """A job, how its models did, and a page of its answers."""
    chosen = _execution_choice(request)
    job = await job_view(api, job_id)
    merged = given(request, "merged") == ["true"]
    answers = await matrix_page(api, job_id, chosen, cursor, QUESTIONS_PER_PAGE, merged=merged)
    async with reading(api.engine) as connection:
        retries = (await jobs.with_retries(connection, job_id, MAX_MERGED_JOBS))[1:]
    summary = await summary_of(api, job_id)
    planned = job.plan.models if job.plan else ()
    return html(
        api,
        "job.html",
        here=None,
        job=job,
        summary=summary,
        retries=retries,
        merged=merged,
        matrix=answers,
        chosen=chosen,
        filtered=chosen != ExecutionFilter(),
        cells=_cells,
        all_models=[model.model_id for model in planned],
        all_regions=list(dict.fromkeys(region for model in planned for region in model.regions)),
        execution_statuses=[status.value for status in ExecutionStatus],
        next=_next(request, answers.next_cursor, "#answers"),
    )


@router.get("/jobs/{job_id}/executions/{execution_id}")
async def show_execution(api: ApiParts, job_id: JobPath, execution_id: UUID) -> Response:
    """The whole fact."""
    return html(api, "execution.html", here=None, execution=await get_execution(api, job_id, execution_id))


def _job_choice(request: Request) -> JobFilter:
    filters = _JobFields.model_validate({name: given(request, name) for name in _JobFields.model_fields})
    return JobFilter(status=filters.status, name=next(iter(filters.name), None))


def _execution_choice(request: Request) -> ExecutionFilter:
    filters = _ExecutionFields.model_validate({n: given(request, n) for n in _ExecutionFields.model_fields})
    return ExecutionFilter(filters.question, filters.model, filters.region, filters.status)


def _cells(row: MatrixRow) -> dict[tuple[str, str], object]:
    return {(cell.model_id, cell.region): cell.executions for cell in row.cells}


def _next(request: Request, cursor: str | None, anchor: str = "") -> str | None:
    if cursor is None:
        return None
    kept = [(name, value) for name, value in request.query_params.multi_items() if value and name != "cursor"]
    return "?" + urlencode([*kept, ("cursor", cursor)]) + anchor
