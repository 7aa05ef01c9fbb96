"""Jobs: lists, one job, its batches, matrix and summary."""

from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query
from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import BatchPage, Job, JobPage, JobStatus, JobTimings, Matrix, Summary
from parallax.contracts.plan import JobPlan
from results.api import cursors
from results.api.access import Api, ApiParts, Reader
from results.api.documented import problems
from results.api.negotiation import produces
from results.api.parameters import Cursor, Flag, JobPath, PageSize, execution_filter, job_filter
from results.api.problems import ApiError, Kind, job_not_found
from results.api.queries import jobs, matrix
from results.api.queries.executions import ExecutionFilter
from results.api.queries.jobs import BatchKey, JobFilter, JobKey
from results.api.queries.matrix import QuestionKey
from results.api.queries.reading import added, reading
from results.api.queries.summaries import LedgerVersion, ledger_version
from results.heartbeats import ALIVE_S

MAX_MATRIX_EXECUTIONS: Final = 5_000
"""Executions on a page of the matrix: the questions of a page are as many as fit."""

MAX_MERGED_JOBS: Final = 200
"""A job and its retries, read together: the work of a page grows with them."""

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    dependencies=[Reader, Depends(produces("application/json"))],
    responses=problems(401, 403, 406, 422, 500, 503),
)


@router.get("", summary="List jobs, newest first")
async def list_jobs(
    api: ApiParts,
    chosen: Annotated[JobFilter, Depends(job_filter)],
    cursor: Cursor = None,
    limit: PageSize = 50,
) -> JobPage:
    """Every filter that is given must hold; a repeated one holds when any of its values does."""
    return await jobs_page(api, chosen, cursor, limit)


async def jobs_page(api: Api, chosen: JobFilter, cursor: str | None, limit: int) -> JobPage:
    """A page of jobs.

    Raises:
        ApiError: The cursor does not belong to this list.
    """
    filters = chosen._asdict()
    after = cursors.decode(cursor, filters, JobKey)
    async with reading(api.engine) as connection:
        found = await jobs.page(connection, chosen, after, limit + 1)
    items = tuple(found[:limit])
    if len(found) <= limit:
        return JobPage(items=items, next_cursor=None)
    return JobPage(items=items, next_cursor=cursors.encode(JobKey(items[-1].created_at, items[-1].id), filters))


@router.get("/{job_id}", summary="All about a job", responses=problems(404))
async def get_job(api: ApiParts, job_id: JobPath) -> Job:
    """Status, place in the waiting line, progress of every lane, tokens, estimated cost, what is running where."""
    return await job_view(api, job_id)


async def job_view(api: Api, job_id: str) -> Job:
    """A job as it stands now.

    Raises:
        ApiError: It is not known.
    """
    now = api.clock.now()
    async with reading(api.engine) as connection:
        found = await jobs.record(connection, job_id)
        if found is None:
            raise job_not_found(job_id)
        lanes = await jobs.lanes(connection, job_id)
        counts = added([lane.counts for lane in lanes])
        version = LedgerVersion(recorded=counts.total, replaced=found.replaced)
        tokens, cost = await api.aggregates.totals(connection, job_id, version)
        running = await jobs.running(connection, job_id, now - timedelta(seconds=ALIVE_S))
    accepted, started, finished = (found.fields[name] for name in ("accepted_at", "started_at", "finished_at"))
    status: JobStatus = found.fields["status"]
    ended = finished or (None if status.ended else now)
    return Job(
        **found.fields,
        counts=counts,
        place_in_queue=found.place_in_queue,
        not_started=found.not_started,
        lanes=lanes,
        tokens=tokens,
        cost=cost,
        timings=JobTimings(
            waited_s=(started - accepted).total_seconds() if started and accepted else None,
            ran_s=(ended - started).total_seconds() if started and ended else None,
        ),
        running=running,
        plan=found.plan,
        spec=found.spec,
        problems=found.problems,
    )


@router.get("/{job_id}/batches", summary="The batches of a job, in order", responses=problems(404))
async def list_batches(api: ApiParts, job_id: JobPath, cursor: Cursor = None, limit: PageSize = 100) -> BatchPage:
    """A batch is one question in one lane; those that were opened are listed."""
    filters = {"job": job_id}
    after = cursors.decode(cursor, filters, BatchKey)
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
        found = await jobs.batches(connection, job_id, after, limit + 1)
    items = tuple(found[:limit])
    if len(found) <= limit:
        return BatchPage(items=items, next_cursor=None)
    return BatchPage(
        items=items, next_cursor=cursors.encode(BatchKey(items[-1].question_index, items[-1].lane), filters)
    )


@router.get("/{job_id}/matrix", summary="Question x model x region", responses=problems(404, 413))
async def get_matrix(
    api: ApiParts,
    job_id: JobPath,
    chosen: Annotated[ExecutionFilter, Depends(execution_filter)],
    cursor: Cursor = None,
    *,
    limit: Annotated[int, Query(ge=1, le=100, description="Questions of a page, at most.")] = 20,
    merged: Annotated[Flag, Query(description="With the answers of the jobs that retried this one.")] = False,
) -> Matrix:
    """What every model in every region answered, question by question; large batches make shorter pages.

    Merged, every cell shows the newest completed execution among the job, its retries and theirs, and where none is
    completed the newest; `job_id` in the cell says whose it is. Filters by status look at what is shown.
    """
    return await matrix_page(api, job_id, chosen, cursor, limit, merged=merged)


async def matrix_page(
    api: Api, job_id: str, chosen: ExecutionFilter, cursor: str | None, limit: int, *, merged: bool = False
) -> Matrix:
    """A page of the matrix of a job.

    Raises:
        ApiError: The job is not known, the cursor does not belong to this matrix, or there are too many retries.
    """
    filters = {"job": job_id, **chosen._asdict(), "merged": merged}
    after = cursors.decode(cursor, filters, QuestionKey)
    async with reading(api.engine) as connection:
        plan = await require_job(connection, job_id)
        models = [m for m in plan.models if not chosen.model or m.model_id in chosen.model] if plan else []
        regions = dict.fromkeys(r for m in models for r in m.regions if not chosen.region or r in chosen.region)
        size = sum(len(m.regions) for m in models) * (plan.samples if plan else 1)
        questions = max(1, min(limit, MAX_MATRIX_EXECUTIONS // max(1, size)))
        shown = await _merged_jobs(connection, job_id) if merged else (job_id,)
        if merged and models:
            chosen = chosen._replace(model=tuple(model.model_id for model in models), region=tuple(regions))
        found = await matrix.page(connection, shown, chosen, after, questions + 1)
    rows = tuple(found[:questions])
    return Matrix(
        job_id=job_id,
        jobs=shown,
        models=tuple(model.model_id for model in models),
        regions=tuple(regions),
        samples=plan.samples if plan else None,
        rows=rows,
        next_cursor=cursors.encode(QuestionKey(rows[-1].question_index), filters) if len(found) > questions else None,
    )


async def _merged_jobs(connection: AsyncConnection, job_id: str) -> tuple[str, ...]:
    found = await jobs.with_retries(connection, job_id, MAX_MERGED_JOBS + 1)
    if len(found) > MAX_MERGED_JOBS:
        raise ApiError(Kind.TOO_LARGE, f"more than {MAX_MERGED_JOBS} jobs would be merged; read them one by one")
    return found


@router.get("/{job_id}/summary", summary="How each model did in each region", responses=problems(404))
async def get_summary(api: ApiParts, job_id: JobPath) -> Summary:
    """Success rates, latencies, tokens, estimated cost, attempts, refusals and empty answers."""
    return await summary_of(api, job_id)


async def summary_of(api: Api, job_id: str) -> Summary:
    """The summary of a job.

    Raises:
        ApiError: The job is not known.
    """
    async with reading(api.engine) as connection:
        version = await ledger_version(connection, job_id)
        if version is None:
            raise job_not_found(job_id)
        return await api.aggregates.summary(connection, job_id, version)


async def require_job(connection: AsyncConnection, job_id: str) -> JobPlan | None:
    """The plan of a job, or ``None`` before its acceptance.

    Raises:
        ApiError: The job is not known.
    """
    known, plan = await jobs.plan(connection, job_id)
    if not known:
        raise job_not_found(job_id)
    return plan
