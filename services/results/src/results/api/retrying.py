"""Derives a job that repeats some executions of an ended one.

Its questions are those that results was told when their batches opened, or else what the prompts in the ledger say
(see ``results.api.queries.questions``). It may be as large as a job can be, so it is read and written out in pages,
between which other requests are answered, and checked like a job that was sent.
"""

import json
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import JobStatus
from parallax.contracts.job import MAX_ONLY, ExecutionRef
from results.api.access import Api
from results.api.problems import ApiError, Kind, Place, job_not_found
from results.api.queries import executions, jobs, questions
from results.api.queries.executions import ExecutionFilter, ExecutionKey, Repeatable
from results.api.queries.reading import reading
from results.api.requests import RetryRequest

PAGE_EXECUTIONS: Final = 2_000
PAGE_QUESTIONS: Final = 200
"""Rows that are read and written out at once: some 10 ms of the event loop, which other requests share."""
MAX_LISTED: Final = 1_000
"""Executions that an answer lists."""


class Derived(NamedTuple):
    """A job that is still to be checked against today's catalog."""

    document: bytes
    only: tuple[ExecutionRef, ...]
    """The first executions that it asks for."""


@dataclass(slots=True)
class _Chosen:
    """The executions to repeat."""

    questions: dict[int, str] = field(default_factory=dict)
    """Their questions' ids, by index and in order."""
    first: list[ExecutionRef] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, page: list[Repeatable]) -> None:
        refs = [
            ExecutionRef(question_id=c.question_id, model_id=c.model_id, region=c.region, sample=c.sample) for c in page
        ]
        self.questions |= {cell.question_index: cell.question_id for cell in page}
        self.first += refs[: MAX_LISTED - len(self.first)]
        self.written.append(",".join(ref.model_dump_json() for ref in refs))
        self.count += len(refs)


async def derived(api: Api, job_id: str, wanted: RetryRequest) -> Derived:
    """The derived job.

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
        repeated = await _repeated(connection, job_id, chosen)
        if not repeated.count:
            raise ApiError(Kind.NOTHING_TO_RETRY, f"job {job_id!r} has no execution that matches")
        asked = await _questions(connection, job_id, repeated.questions)
    head = _compact({**record.spec, "retry_of": job_id})
    parts = [head[:-1], ',"questions":[', ",".join(asked), '],"only":[', ",".join(repeated.written), "]}"]
    return Derived("".join(parts).encode(), tuple(repeated.first))


async def _repeated(connection: AsyncConnection, job_id: str, chosen: ExecutionFilter) -> _Chosen:
    found = _Chosen()
    after: ExecutionKey | None = None
    while True:
        page = await executions.repeatable(connection, job_id, chosen, after, PAGE_EXECUTIONS)
        if not page:
            return found
        found.add(page)
        if found.count > MAX_ONLY:
            raise ApiError(Kind.TOO_LARGE, f"more than {MAX_ONLY} executions match; choose fewer by model or region")
        last = page[-1]
        after = ExecutionKey(last.question_index, last.model_id, last.region, last.sample)


async def _questions(connection: AsyncConnection, job_id: str, wanted: dict[int, str]) -> list[str]:
    """The documents of the wanted questions, in order."""
    written: list[str] = []
    unknown: list[str] = []
    indexes = sorted(wanted)
    for start in range(0, len(indexes), PAGE_QUESTIONS):
        page = indexes[start : start + PAGE_QUESTIONS]
        asked = await questions.whole(connection, job_id, page)
        known = {question["id"] for question in asked}
        unknown += [wanted[index] for index in page if wanted[index] not in known]
        written += [_compact(question) for question in asked]
    if unknown:
        detail = "these questions were never opened and no execution of them was called; submit them as a new job"
        places = [Place(message="its text is not known", pointer=f"/questions/{name}") for name in unknown[:100]]
        raise ApiError(Kind.NOT_RETRYABLE, detail, errors=places)
    return written


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
