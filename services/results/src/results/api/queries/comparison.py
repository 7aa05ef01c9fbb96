"""What a comparison reads: the jobs, their questions, and the answers of some questions at a time, in order."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from parallax.contracts.answers import JobStatus
from parallax.contracts.model import read_document
from parallax.contracts.plan import JobPlan
from parallax.contracts.rates import Outcome
from results.api.queries.outcomes import JUDGED, OUTCOME, RULES
from results.api.queries.reading import rows
from results.comparison.subjects import Answer, CellKey
from results.comparison.texts import MAX_CHARS


class ComparedJob(NamedTuple):
    """A job as far as a comparison needs to know it."""

    job_id: str
    status: JobStatus
    plan: JobPlan | None
    spec: Mapping[str, Any]


class AskedHere(NamedTuple):
    """A question of a job."""

    number: int
    """Its index in the job."""
    id: str
    complete: bool
    """Whether every batch of it is."""
    recorded: int
    tags: tuple[str, ...]
    choices: tuple[str, ...]
    expected: str | None


class Said(NamedTuple):
    """An answer, and the hash of the prompt that it answers."""

    answer: Answer
    prompt: str | None


async def job(connection: AsyncConnection, job_id: str) -> ComparedJob | None:
    """A job, or ``None`` for an unknown one."""
    statement = "SELECT job_id, status, plan, spec FROM results.jobs WHERE job_id = :job_id"
    for found in await rows(connection, statement, {"job_id": job_id}):
        plan = read_document(JobPlan, found["plan"]) if found["plan"] else None
        return ComparedJob(found["job_id"], JobStatus(found["status"]), plan, found["spec"] or {})
    return None


async def unfinished(connection: AsyncConnection, jobs: Sequence[str]) -> bool:
    """Whether one of these jobs still runs."""
    statement = "SELECT status FROM results.jobs WHERE job_id = ANY(:jobs)"
    return any(not JobStatus(r["status"]).ended for r in await rows(connection, statement, {"jobs": list(jobs)}))


_QUESTIONS: Final = """
SELECT question_index, question_id, bool_and(completed_at IS NOT NULL) AS complete, count(*) AS lanes,
       sum(recorded)::bigint AS recorded,
       (array_agg(jsonb_build_object(
            'tags', question -> 'tags', 'choices', question -> 'choices', 'expected', question -> 'expected'
        )) FILTER (WHERE question IS NOT NULL))[1] AS told
  FROM results.batches WHERE job_id = :job_id
 GROUP BY question_index, question_id ORDER BY question_index
"""


async def questions(connection: AsyncConnection, of: ComparedJob) -> list[AskedHere]:
    """The questions of a job that were opened, in order."""
    lanes = len(of.plan.lanes()) if of.plan else 1
    return [
        AskedHere(
            found["question_index"],
            found["question_id"],
            bool(found["complete"]) and found["lanes"] >= lanes,
            found["recorded"],
            tuple((found["told"] or {}).get("tags") or ()),
            tuple((found["told"] or {}).get("choices") or ()),
            (found["told"] or {}).get("expected"),
        )
        for found in await rows(connection, _QUESTIONS, {"job_id": of.job_id})
    ]


_ANSWERS: Final = f"""
SELECT newest.question_id, e.model_id, e.region, e.sample, left(e.output ->> 'text', {MAX_CHARS}) AS text,
       e.output_chars, e.status = 'completed' AND e.finish_reason = 'length' AS cut_off,
       (e.receipt #>> '{{parameters,seed}}')::bigint AS seed, e.receipt ->> 'prompt_sha256' AS prompt,
       {OUTCOME} AS outcome
  FROM (
    SELECT DISTINCT ON (b.question_id, e.model_id, e.region, e.sample) b.question_id, e.execution_id
      FROM results.batches AS b
      JOIN results.executions AS e
        ON e.job_id = b.job_id AND e.question_index = b.question_index AND e.lane = b.lane
     WHERE b.job_id = ANY(:jobs) AND b.question_id = ANY(:questions)
       AND e.model_id = ANY(:models) AND e.region = ANY(:regions)
     ORDER BY b.question_id, e.model_id, e.region, e.sample,
              (e.status = 'completed') DESC, e.completed_at DESC, e.execution_id
  ) AS newest
  JOIN results.executions AS e USING (execution_id) {JUDGED}
 ORDER BY newest.question_id, e.model_id, e.region, e.sample
"""  # noqa: S608 - made of constants
"""Of each sample the newest completed execution among a job and its retries, or else the newest; as in the matrix."""


async def answers(
    connection: AsyncConnection, jobs: Sequence[str], asked: Sequence[str], cells: Sequence[CellKey]
) -> dict[str, dict[CellKey, list[Said]]]:
    """The answers to some questions by question and cell; ``jobs``: the job whose cells these are, and its retries."""
    values = {
        "jobs": list(jobs),
        "questions": list(asked),
        "models": list({cell.model_id for cell in cells}),
        "regions": list({cell.region for cell in cells}),
        **RULES,
    }
    found: dict[str, dict[CellKey, list[Said]]] = {question: {} for question in asked}
    wanted = frozenset(cells)
    for (question, model, region), records in groupby(
        await rows(connection, _ANSWERS, values), key=itemgetter("question_id", "model_id", "region")
    ):
        cell = CellKey(jobs[0], model, region)
        if cell in wanted:
            found[question][cell] = [_said(record) for record in records]
    return found


def _said(record: Mapping[Any, Any]) -> Said:
    answer = Answer(
        sample=record["sample"],
        outcome=Outcome(record["outcome"]),
        text=record["text"] or "",
        seed=record["seed"],
        cut_off=bool(record["cut_off"]),
        chars=record["output_chars"] or 0,
    )
    return Said(answer, record["prompt"])
