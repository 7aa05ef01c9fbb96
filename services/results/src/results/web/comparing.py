"""The pages of the comparison: what differs over all questions, and one question side by side."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from parallax.contracts.answers import Execution, Matrix, MatrixRow
from parallax.contracts.comparison import Across, Comparison, ComparisonProgress, PairComparison
from parallax.contracts.model import JobId, Name, RegionName
from results.api.access import Api, ApiParts, Reader
from results.api.comparing import Asked
from results.api.parameters import JobPath
from results.api.problems import ApiError, Kind
from results.api.queries import executions, matrix
from results.api.queries.executions import ExecutionFilter
from results.api.queries.matrix import QuestionKey
from results.api.queries.reading import reading
from results.api.routes.comparison import asked_for
from results.api.routes.jobs import require_job
from results.web.answering import PageRoute, given, html
from results.web.heat import groups_of, letters, part_of, shade

MAX_COMPARED: Final = 200
"""Whole answers on one page; a batch of more shows its first."""

router = APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[Reader])


class _Fields(BaseModel):
    """What the form over a comparison may ask for."""

    across: Annotated[tuple[Across, ...], Field(max_length=1)]
    with_job: Annotated[tuple[JobId, ...], Field(alias="with", max_length=1)]
    against: Annotated[tuple[Name, ...], Field(max_length=1)]
    question: Annotated[tuple[Name, ...], Field(max_length=20)]
    model: Annotated[tuple[Name, ...], Field(max_length=20)]
    region: Annotated[tuple[RegionName, ...], Field(max_length=20)]


async def _asked(request: Request, job_id: JobPath) -> Asked:
    """As the resource's parameters; a form sends empty ones for what was not chosen."""
    names = ("across", "with", "against", "question", "model", "region")
    fields = _Fields.model_validate({name: given(request, name) for name in names})
    return await asked_for(
        job_id,
        next(iter(fields.across), None),
        next(iter(fields.with_job), None),
        next(iter(fields.against), None),
        list(fields.question),
        list(fields.model),
        list(fields.region),
    )


@router.get("/jobs/{job_id}/comparison")
async def show_comparison(api: ApiParts, asked: Annotated[Asked, Depends(_asked)], request: Request) -> Response:
    """What differs, with how sure one can be; while it is computed, how far that is."""
    found = await api.comparisons.of(asked)
    if isinstance(found, ComparisonProgress):
        return html(api, "comparing.html", here=None, progress=found)
    parts = list(dict.fromkeys(part_of(cell, found.across) for cell in found.cells))
    return html(
        api,
        "comparison.html",
        here=None,
        found=found,
        groups=groups_of(found),
        asked=asked,
        choices=parts if found.with_job_id is None else [],
        query=request.url.query,
        shade=shade,
        letters=letters,
        part_of=part_of,
    )


@router.get("/jobs/{job_id}/compare/{index}")
async def show_question(api: ApiParts, job_id: JobPath, index: Annotated[int, Path(ge=0, lt=2**31)]) -> Response:
    """Every answer to one question, side by side across the regions, with how far they are apart."""
    page, row = await _one_row(api, job_id, index)
    async with reading(api.engine) as connection:
        found = await executions.of_question(connection, job_id, index, MAX_COMPARED + 1)
    answers: dict[tuple[str, str], list[Execution]] = {}
    for execution in found[:MAX_COMPARED]:
        answers.setdefault((execution.model_id, execution.region), []).append(execution)
    pairs = await _pairs(api, job_id, row.question_id)
    return html(
        api,
        "compare.html",
        here=None,
        job_id=job_id,
        row=row,
        matrix=page,
        answers=answers,
        pairs=pairs,
        typical=_typical(pairs),
        shade=shade,
        cut=len(found) > MAX_COMPARED,
        shown=MAX_COMPARED,
    )


async def _pairs(api: Api, job_id: str, question_id: str) -> list[PairComparison]:
    """The pairs of one question; none where there is nothing to compare, or too much."""
    try:
        found = await api.comparisons.of(Asked(job_id, question=(question_id,)))
    except ApiError:
        return []
    if not isinstance(found, Comparison):
        return []
    return [pair for pair in (*found.controls, *found.pairs) if pair.questions]


def _typical(pairs: list[PairComparison]) -> set[tuple[str, str, int]]:
    """The answers that are nearest to the others of their cell."""
    sides = [(cell, side) for p in pairs for cell, side in ((p.a, p.questions[0].a), (p.b, p.questions[0].b))]
    return {
        (cell.model_id, cell.region, side.typical_sample)
        for cell, side in sides
        if side.typical_sample is not None and side.answers > 1
    }


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
