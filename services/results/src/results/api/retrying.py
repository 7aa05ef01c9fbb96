"""Derives a job that repeats some executions of an ended one.

Its questions are those that results was told when their batches opened, or else what the prompts in the ledger say
(see ``results.api.queries.questions``).
"""

from typing import Final

from parallax.contracts.answers import JobStatus
from parallax.contracts.job import MAX_QUESTIONS
from results.api.access import Api
from results.api.problems import ApiError, Kind, Place, job_not_found
from results.api.queries import executions, jobs, questions
from results.api.queries.executions import ExecutionFilter
from results.api.queries.reading import reading
from results.api.requests import RetryRequest

MAX_RETRIED: Final = 100_000
"""Executions one retry names; they travel in one message."""


async def derived(api: Api, job_id: str, wanted: RetryRequest) -> dict[str, object]:
    """The document of the derived job; it is still to be checked against today's catalog.

    Raises:
        ApiError: The job is not known, has not ended, was never accepted, or nothing of it matches.
    """
    chosen = ExecutionFilter(wanted.question, wanted.model, wanted.region, tuple(s.value for s in wanted.status))
    async with reading(api.engine) as connection:
        record = await jobs.record(connection, job_id)
        if record is None:
            raise job_not_found(job_id)
        status: JobStatus = record.fields["status"]
        if record.spec is None or not status.ended:
            raise ApiError(Kind.NOT_RETRYABLE, f"job {job_id!r} is {status}; only a job that ran and ended is retried")
        cells = await executions.repeatable(connection, job_id, chosen, MAX_RETRIED + 1)
        asked = await questions.whole(connection, job_id, sorted({cell.question_index for cell in cells}))
    if not cells:
        raise ApiError(Kind.NOTHING_TO_RETRY, f"job {job_id!r} has no execution that matches")
    if len(cells) > MAX_RETRIED:
        raise ApiError(Kind.TOO_LARGE, f"more than {MAX_RETRIED} executions match; choose fewer by model or region")
    unknown = sorted({cell.question_id for cell in cells} - {question["id"] for question in asked})
    if unknown:
        detail = "nothing told of these questions, and no execution of them was ever called; submit them anew"
        places = [Place(message="its text is not known", pointer=f"/questions/{name}") for name in unknown[:100]]
        raise ApiError(Kind.NOT_RETRYABLE, detail, errors=places)
    assert len(asked) <= MAX_QUESTIONS
    return {
        **record.spec,
        "questions": asked,
        "only": [
            {"question_id": cell.question_id, "model_id": cell.model_id, "region": cell.region, "sample": cell.sample}
            for cell in cells
        ],
        "retry_of": job_id,
    }
