"""What differs between regions, models, prompts or jobs; and what people decide about single answers."""

import csv
import io
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response

from parallax.contracts.comparison import (
    Across,
    Comparison,
    ComparisonProgress,
    Judgement,
    Judgements,
    QuestionComparison,
)
from parallax.contracts.model import JobId, Name, RegionName
from parallax.contracts.outcomes import ExecutionStatus
from parallax.db.engine import transaction
from results.api import bodies
from results.api.access import ApiParts, Reader, requires
from results.api.comparing import Asked
from results.api.documented import problems, required_body
from results.api.exports import cell
from results.api.keys import Scope
from results.api.negotiation import produces
from results.api.parameters import MAX_FILTER_VALUES, JobPath
from results.api.problems import ApiError, Kind, invalid_parameter
from results.api.queries import outcomes
from results.api.queries.reading import reading
from results.api.requests import JudgeRequest
from results.api.routes.jobs import require_job
from results.comparison.outcomes import RULES_VERSION

MAX_LISTED: Final = 1_000
"""Decisions that are listed, the newest."""
ASK_AGAIN_S: Final = 1

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["comparison"], responses=problems(401, 403, 404, 422, 500, 503))
MayJudge = Annotated[str, Depends(requires(Scope.SUBMIT))]
AsJson: Final = Depends(produces("application/json"))


class Format(StrEnum):
    """How a comparison is written."""

    JSON = "json"
    CSV = "csv"


async def asked_for(  # noqa: PLR0917 - FastAPI passes query parameters by name
    job_id: JobPath,
    across: Annotated[
        Across | None,
        Query(description="What the two sides differ in: region (the default), model, or with two jobs job or prompt."),
    ] = None,
    with_job: Annotated[
        JobId | None, Query(alias="with", description="Compare the same cells and prompts in this job too.")
    ] = None,
    against: Annotated[
        Name | None,
        Query(description="Only pairs with this region or model; `all` for every pair also of five and more."),
    ] = None,
    question: Annotated[list[Name], Query(max_length=MAX_FILTER_VALUES, description="Only these questions.")] = [],  # noqa: B006
    model: Annotated[list[Name], Query(max_length=MAX_FILTER_VALUES, description="Only these models.")] = [],  # noqa: B006
    region: Annotated[list[RegionName], Query(max_length=MAX_FILTER_VALUES, description="Only these regions.")] = [],  # noqa: B006
) -> Asked:
    """What is compared, for ``Depends``.

    Raises:
        ApiError: The parameters contradict each other.
    """
    several = {Across.JOB, Across.PROMPT}
    if with_job is None and across in several:
        raise invalid_parameter("across", f"{across.value} needs a second job in `with`", "region, model")
    if with_job is not None and across not in {None, *several}:
        raise invalid_parameter("across", "two jobs are compared cell by cell", "job, prompt")
    if with_job == job_id:
        raise invalid_parameter("with", "is the job itself", "another job")
    if with_job is not None and against is not None:
        raise invalid_parameter("against", "two jobs are compared cell by cell", "nothing")
    chosen = across or (Across.REGION if with_job is None else Across.JOB)
    filters = (tuple(dict.fromkeys(values)) for values in (question, model, region))
    return Asked(job_id, chosen, with_job, against, *filters)


Wanted = Annotated[Asked, Depends(asked_for)]

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": Comparison,
        "description": "The comparison.",
        "content": {"text/csv": {"schema": {"type": "string"}}},
    },
    202: {"model": ComparisonProgress, "description": "It is still being computed: ask again."},
}


@router.get(
    "/comparison",
    summary="What differs, and how sure one can be",
    dependencies=[Reader, Depends(produces("application/json", "text/csv"))],
    response_class=Response,
    responses={**_ANSWERS, **problems(406, 409, 413)},
)
async def get_comparison(
    api: ApiParts,
    wanted: Wanted,
    file_format: Annotated[Format, Query(alias="format", description="What the answer is.")] = Format.JSON,
) -> Response:
    """Every pair with its verdict, its size beside the noise of repeats, and every question of it. A long comparison
    answers 202 with its progress; asking again for the same goes on. A comparison with filters is one of its own: its
    verdicts are about what was chosen.
    """
    found = await api.comparisons.of(wanted)
    if isinstance(found, ComparisonProgress):
        headers = {"Retry-After": str(ASK_AGAIN_S)}
        return Response(found.model_dump_json(), 202, headers, media_type="application/json")
    if file_format is Format.CSV:
        disposition = f'attachment; filename="{wanted.job_id}-comparison.csv"'
        headers = {"Content-Disposition": disposition}
        return Response(as_csv(found), media_type="text/csv; charset=utf-8", headers=headers)
    return Response(found.model_dump_json(), media_type="application/json")


@router.post(
    "/executions/{execution_id}/outcome",
    status_code=201,
    summary="Decide what an answer is",
    dependencies=[AsJson],
    responses=problems(400, 406, 409, 413, 415),
    openapi_extra=required_body("JudgeRequest", {"outcome": "refused_in_words", "note": "evades the question"}),
)
async def judge_execution(
    request: Request, api: ApiParts, job_id: JobPath, execution_id: UUID, author: MayJudge
) -> Judgement:
    """Over the rules, for every summary and comparison from now on. It is kept with the key's id and the time, beside
    earlier decisions, of which the last counts; `null` gives the answer back to the rules.
    """
    wanted = await bodies.required(request, JudgeRequest)
    async with transaction(api.engine) as connection:
        found = await outcomes.by_rules(connection, job_id, execution_id)
        if found is None:
            raise ApiError(Kind.NOT_FOUND, f"job {job_id!r} has no execution {execution_id} that has ended")
        status, by_rules = found
        if status != ExecutionStatus.COMPLETED:
            raise ApiError(Kind.NOT_JUDGEABLE, f"the execution is {status}: there is no answer to judge")
        decision = outcomes.Decision(
            execution_id, wanted.outcome, by_rules, RULES_VERSION, author, wanted.note, api.clock.now()
        )
        await outcomes.decide(connection, job_id, decision)
    return Judgement(**decision._asdict())


@router.get(
    "/judgements",
    summary="What people decided about answers",
    dependencies=[Reader, AsJson],
    responses=problems(406),
)
async def list_judgements(api: ApiParts, job_id: JobPath) -> Judgements:
    """Every decision, the newest first; at most 1,000."""
    async with reading(api.engine) as connection:
        await require_job(connection, job_id)
        found = await outcomes.decided(connection, job_id, MAX_LISTED)
    return Judgements(items=tuple(Judgement(**record) for record in found))


COLUMNS: Final = (
    "control", "job_a", "model_a", "region_a", "job_b", "model_b", "region_b", "pair_verdict", "pair_p",
    "pair_separation", "pair_noise", "question_index", "question_id", "tags", "verdict", "p", "kinds", "separation",
    "noise", "visible", "between", "answers_a", "answers_b", "refused_a", "refused_b", "empty_a", "empty_b",
    "cut_off_a", "cut_off_b", "missing_a", "missing_b", "within_a", "within_b", "median_chars_a", "median_chars_b",
    "words_a", "words_b", "typical_a", "typical_b", "sentence",
)  # fmt: skip
_OF_A_SIDE: Final = ("answers", "refused", "empty", "cut_off", "missing", "within", "median_chars", "typical")


def as_csv(document: Comparison) -> str:
    """One row per pair and question; cells that a spreadsheet would run are defused."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for row in _rows(document):
        writer.writerow([cell(row[name]) for name in COLUMNS])
    return buffer.getvalue()


def _rows(document: Comparison) -> Iterator[dict[str, object]]:
    for pair in (*document.controls, *document.pairs):
        whole = {
            "control": pair.control,
            **{f"{part}_{side}": getattr(where, f"{part}_id" if part != "region" else part)
               for side, where in (("a", pair.a), ("b", pair.b)) for part in ("job", "model", "region")},
            "pair_verdict": pair.verdict,
            "pair_p": pair.p,
            "pair_separation": pair.separation,
            "pair_noise": pair.noise,
        }  # fmt: skip
        for question in pair.questions:
            yield whole | _of_question(question)


def _of_question(question: QuestionComparison) -> dict[str, object]:
    plain = {
        name: getattr(question, name)
        for name in (
            "question_index", "question_id", "verdict", "p", "separation", "noise", "visible", "between", "sentence",
        )
    }  # fmt: skip
    sides = {
        f"{name}_{side}": getattr(part, name)
        for side, part in (("a", question.a), ("b", question.b))
        for name in _OF_A_SIDE
    }
    listed = {
        "tags": " ".join(question.tags),
        "kinds": " ".join(question.kinds),
        "words_a": " ".join(word.word for word in question.words_a),
        "words_b": " ".join(word.word for word in question.words_b),
    }
    return plain | sides | listed
