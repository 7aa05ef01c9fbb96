"""The web page: server-rendered, without a build step and without anything from elsewhere.

It shows what the API tells and changes nothing. Everything that models or users wrote is escaped by the template
engine, and the policy of every answer forbids whatever is not a file of this page, inline code included.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import HTMLResponse, Response

from parallax.contracts.answers import Execution, JobStatus, Matrix, MatrixRow
from parallax.contracts.model import Name, RegionName
from parallax.contracts.outcomes import ExecutionStatus
from parallax.errors import UnavailableError
from results.api.access import Api, ApiParts, Reader
from results.api.parameters import Cursor, JobPath
from results.api.problems import RETRY_AFTER_S, ApiError, Kind
from results.api.queries import executions, jobs, matrix
from results.api.queries.executions import ExecutionFilter
from results.api.queries.jobs import JobFilter
from results.api.queries.matrix import QuestionKey
from results.api.queries.reading import reading
from results.api.requests import StorableText
from results.api.routes.executions import get_execution
from results.api.routes.installation import get_regions
from results.api.routes.jobs import MAX_MERGED_JOBS, job_view, jobs_page, matrix_page, require_job, summary_of
from results.web.rendering import render

JOBS_PER_PAGE: Final = 50
QUESTIONS_PER_PAGE: Final = 20
MAX_COMPARED: Final = 200
"""Whole answers on one page; a batch of more shows its first."""

_POLICY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
}


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


class _Page(APIRoute):
    """A route whose problems are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its problems rendered."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ApiError as error:
                return _problem(error.kind, error.detail, error.headers)
            except (RequestValidationError, ValidationError):
                return _problem(Kind.INVALID_REQUEST, "A part of the address is wrong.", {})
            except UnavailableError:
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                return _problem(Kind.UNAVAILABLE, "The database cannot be reached just now.", headers)

        return handle


router = APIRouter(route_class=_Page, include_in_schema=False, dependencies=[Reader])


@router.get("/")
async def show_jobs(request: Request, api: ApiParts, cursor: Cursor = None) -> Response:
    """Jobs, newest first."""
    chosen = _job_choice(request)
    page = await jobs_page(api, chosen, cursor, JOBS_PER_PAGE)
    return _html(
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
    return _html(api, "regions.html", here="regions", regions=await get_regions(api))


@router.get("/jobs/{job_id}")
async def show_job(request: Request, api: ApiParts, job_id: JobPath, cursor: Cursor = None) -> Response:
    """A job, how its models did, and a page of its answers."""
    chosen = _execution_choice(request)
    job = await job_view(api, job_id)
    merged = _given(request, "merged") == ["true"]
    answers = await matrix_page(api, job_id, chosen, cursor, QUESTIONS_PER_PAGE, merged=merged)
    async with reading(api.engine) as connection:
        retries = (await jobs.with_retries(connection, job_id, MAX_MERGED_JOBS))[1:]
    summary = await summary_of(api, job_id)
    planned = job.plan.models if job.plan else ()
    return _html(
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


@router.get("/jobs/{job_id}/compare/{index}")
async def show_comparison(api: ApiParts, job_id: JobPath, index: Annotated[int, Path(ge=0, lt=2**31)]) -> Response:
    """Every answer to one question, side by side across the regions."""
    page, row = await _one_row(api, job_id, index)
    async with reading(api.engine) as connection:
        found = await executions.of_question(connection, job_id, index, MAX_COMPARED + 1)
    answers: dict[tuple[str, str], list[Execution]] = {}
    for execution in found[:MAX_COMPARED]:
        answers.setdefault((execution.model_id, execution.region), []).append(execution)
    return _html(
        api,
        "compare.html",
        here=None,
        job_id=job_id,
        row=row,
        matrix=page,
        answers=answers,
        cut=len(found) > MAX_COMPARED,
        shown=MAX_COMPARED,
    )


@router.get("/jobs/{job_id}/executions/{execution_id}")
async def show_execution(api: ApiParts, job_id: JobPath, execution_id: UUID) -> Response:
    """The whole fact."""
    return _html(api, "execution.html", here=None, execution=await get_execution(api, job_id, execution_id))


async def _one_row(api: Api, job_id: str, index: int) -> tuple[Matrix, MatrixRow]:
    async with reading(api.engine) as connection:
        plan = await require_job(connection, job_id)
        rows = await matrix.page(connection, (job_id,), ExecutionFilter(), QuestionKey(index - 1), 1)
    if not rows or rows[0].question_index != index:
        raise ApiError(Kind.NOT_FOUND, f"question {index + 1} of job {job_id!r} was not opened yet")
    models = plan.models if plan else ()
    return (
        Matrix(
            job_id=job_id,
            jobs=(job_id,),
            models=tuple(model.model_id for model in models),
            regions=tuple(dict.fromkeys(region for model in models for region in model.regions)),
            samples=plan.samples if plan else None,
            rows=tuple(rows),
            next_cursor=None,
        ),
        rows[0],
    )


def _given(request: Request, name: str) -> list[str]:
    """The values of a parameter; a form sends an empty one for what was not chosen."""
    return [value for value in request.query_params.getlist(name) if value]


def _job_choice(request: Request) -> JobFilter:
    filters = _JobFields.model_validate({name: _given(request, name) for name in _JobFields.model_fields})
    return JobFilter(status=filters.status, name=next(iter(filters.name), None))


def _execution_choice(request: Request) -> ExecutionFilter:
    filters = _ExecutionFields.model_validate({n: _given(request, n) for n in _ExecutionFields.model_fields})
    return ExecutionFilter(filters.question, filters.model, filters.region, filters.status)


def _cells(row: MatrixRow) -> dict[tuple[str, str], object]:
    return {(cell.model_id, cell.region): cell.executions for cell in row.cells}


def _html(api: Api, template: str, **values: object) -> Response:
    simulated = [name for name, region in api.catalog.regions.items() if region.simulated]
    return HTMLResponse(render(template, simulated=simulated, **values), headers=_POLICY)


def _problem(kind: Kind, detail: str, headers: dict[str, str]) -> Response:
    body = render("problem.html", title=kind.title, detail=detail, here=None, simulated=[])
    return HTMLResponse(body, status_code=kind.status, headers={**_POLICY, **headers})


def _next(request: Request, cursor: str | None, anchor: str = "") -> str | None:
    if cursor is None:
        return None
    kept = [(name, value) for name, value in request.query_params.multi_items() if value and name != "cursor"]
    return "?" + urlencode([*kept, ("cursor", cursor)]) + anchor
