"""Retrying over HTTP: exactly what is wanted is asked again, and its answers are shown with the first ones."""

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from parallax.contracts.job import JobSpec
from parallax.contracts.messages import ExecutionFinished, SubmitJob
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.plan import BatchPlan, Cell
from parallax.contracts.routing import SUBMISSIONS
from results.api.routes.jobs import MAX_MERGED_JOBS
from tests.fakes import facts
from tests.integration.api_stage import Stage, job_document, staged

COMPLETED, FAILED, TIMED_OUT = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TIMED_OUT
ASKED = "What is the most important invention in history?"
"""What the prompts of the facts ask, whatever the job says."""


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


async def one_job(stage: Stage, lost: Mapping[int, ExecutionStatus], *, told: bool = True, **changes: Any) -> JobSpec:
    """``job-1``: some of its questions have no answer from Europe."""
    spec = await stage.accept("job-1", job_document(**changes))
    for index in range(len(spec.questions)):
        batch = await stage.open("job-1", spec, index, told=told)
        await stage.store(
            facts.ended(batch, cell, lost[index])
            if index in lost and cell.region == "eu"
            else facts.observed(batch, cell)
            for cell in batch.cells
        )
    await stage.finish("job-1")
    return spec


async def retried(stage: Stage, job_id: str, new_id: str, **wanted: Any) -> JobSpec:
    """Ask for a retry and let it be accepted."""
    response = await stage.http.post(f"/v1/jobs/{job_id}/retry", json={"job_id": new_id, **wanted})
    assert response.status_code == 202, response.text
    (message,) = await stage.published(SUBMISSIONS)
    assert isinstance(message, SubmitJob)
    return await stage.accept(new_id, message.job.model_dump(mode="json"))


async def run(
    stage: Stage, job_id: str, spec: JobSpec, outcomes: Mapping[str, ExecutionStatus], *, after_s: float
) -> None:
    """Let everything a retry asks for end, each model in its way, some time after the start."""
    for index, question in enumerate(spec.questions):
        batch = await stage.open(job_id, spec, index)
        cells = [Cell(r.model_id, r.region, r.sample) for r in spec.only or () if r.question_id == question.id]
        await stage.store(ended(batch, cell, outcomes[cell.model_id], job_id, after_s) for cell in cells)
    await stage.finish(job_id)


def ended(batch: BatchPlan, cell: Cell, status: ExecutionStatus, text: str, after_s: float) -> ExecutionFinished:
    fact = facts.observed(batch, cell, text=text) if status is COMPLETED else facts.ended(batch, cell, status)
    return fact.model_copy(update={"completed_at": facts.START + timedelta(seconds=after_s)})


async def shown(stage: Stage, path: str = "/v1/jobs/job-1/matrix", **params: Any) -> dict[tuple[str, str, str], Any]:
    """The executions of the matrix by question, model and region."""
    response = await stage.http.get(path, params={"merged": "true", **params})
    assert response.status_code == 200, response.text
    return {
        (row["question_id"], cell["model_id"], cell["region"]): only
        for row in response.json()["rows"]
        for cell in row["cells"]
        for only in cell["executions"]
    }


def told_by(cells: Mapping[tuple[str, str, str], Any]) -> dict[tuple[str, str, str], tuple[str, str]]:
    return {place: (execution["job_id"], execution["status"]) for place, execution in cells.items()}


# --- what is asked again


async def test_a_retry_repeats_just_what_failed(stage: Stage) -> None:
    spec = await stage.accept("job-1", job_document(metadata={"team": "red"}))
    for index in range(3):
        batch = await stage.open("job-1", spec, index)
        lost = {1: FAILED, 2: TIMED_OUT}.get(index)
        await stage.store(
            facts.ended(batch, cell, lost) if lost and cell.region == "eu" else facts.observed(batch, cell)
            for cell in batch.cells
        )
    assert (await stage.http.post("/v1/jobs/job-1/retry")).json()["type"] == "urn:parallax:problem:not-retryable"
    await stage.finish("job-1")
    response = await stage.http.post("/v1/jobs/job-1/retry", json={"job_id": "again"})
    assert response.status_code == 202, response.text
    answer = response.json()
    assert (answer["id"], answer["retry_of"], answer["executions"], answer["batches"]) == ("again", "job-1", 4, 2)
    (message,) = await stage.published(SUBMISSIONS)
    assert isinstance(message, SubmitJob)
    job = message.job
    assert job.questions == spec.questions[1:]
    assert {(ref.question_id, ref.model_id, ref.region) for ref in job.only or ()} == {
        (question, model, "eu") for question in ("question-1", "question-2") for model in ("model-0", "model-1")
    }
    assert (job.retry_of, job.metadata, job.models) == ("job-1", {"team": "red"}, spec.models)
    assert (await stage.http.get("/v1/jobs", params={"retry_of": "job-1"})).json()["items"][0]["id"] == "again"
    again = await stage.http.post("/v1/jobs/job-1/retry", json={"job_id": "again"})
    assert again.json() == answer
    narrower = await stage.http.post("/v1/jobs/job-1/retry", json={"model": ["model-0"], "status": ["failed"]})
    assert narrower.json()["executions"] == 1


async def test_a_retry_of_nothing_is_refused(stage: Stage) -> None:
    await stage.complete_job("job-1", 1)
    problem = (await stage.http.post("/v1/jobs/job-1/retry")).json()
    assert (problem["status"], problem["type"]) == (409, "urn:parallax:problem:nothing-to-retry")


async def unasked(stage: Stage, *, told: bool) -> JobSpec:
    """``job-1``: its only question was opened and no executor called a model with it."""
    question = {"id": "q", "text": "Why? 東京", "tags": ["odd"], "metadata": {"weight": 2.5, "deep": [{"a": None}]}}
    spec = await stage.accept("job-1", job_document(questions=0) | {"questions": [question]})
    batch = await stage.open("job-1", spec, 0, told=told)
    lost = [facts.ended(batch, cell, TIMED_OUT) for cell in batch.cells]
    await stage.store(fact.model_copy(update={"messages": ()}) for fact in lost)
    await stage.finish("job-1")
    return spec


async def test_a_question_that_no_model_was_called_with_is_asked_whole(stage: Stage) -> None:
    spec = await unasked(stage, told=True)
    again = await retried(stage, "job-1", "again")
    assert again.questions == spec.questions
    assert len(again.only or ()) == 6
    assert (await stage.http.get("/v1/jobs/job-1/matrix")).json()["rows"][0]["text"] == "Why? 東京"


async def test_a_question_whose_opening_was_lost_is_found_in_the_prompts(stage: Stage) -> None:
    await one_job(stage, {1: FAILED}, told=False)
    again = await retried(stage, "job-1", "again")
    assert [(question.id, question.text) for question in again.questions] == [("question-1", ASKED)]
    assert (await stage.http.get("/v1/jobs/job-1/matrix")).json()["rows"][0]["text"] == ASKED


async def test_a_question_that_nothing_tells_of_cannot_be_rebuilt(stage: Stage) -> None:
    await unasked(stage, told=False)
    problem = (await stage.http.post("/v1/jobs/job-1/retry")).json()
    assert (problem["status"], problem["errors"][0]["pointer"]) == (409, "/questions/q")
    assert (await stage.http.get("/v1/jobs/job-1/matrix")).json()["rows"][0]["text"] is None


# --- answers of a job and its retries


async def test_merged_every_cell_has_its_newest_answer(stage: Stage) -> None:
    await one_job(stage, {1: FAILED, 2: FAILED})
    first = await retried(stage, "job-1", "again-1")
    await run(stage, "again-1", first, {"model-0": COMPLETED, "model-1": TIMED_OUT}, after_s=100)
    second = await retried(stage, "again-1", "again-2", question=["question-2"])
    await run(stage, "again-2", second, {"model-1": COMPLETED}, after_s=200)

    own = told_by(await shown(stage, merged="false"))
    assert set(own.values()) == {("job-1", "completed"), ("job-1", "failed")}

    cells = await shown(stage)
    europe = {place: told for place, told in told_by(cells).items() if place[2] == "eu"}
    assert europe == {
        ("question-0", "model-0", "eu"): ("job-1", "completed"),
        ("question-0", "model-1", "eu"): ("job-1", "completed"),
        ("question-1", "model-0", "eu"): ("again-1", "completed"),
        ("question-1", "model-1", "eu"): ("again-1", "timed_out"),
        ("question-2", "model-0", "eu"): ("again-1", "completed"),
        ("question-2", "model-1", "eu"): ("again-2", "completed"),
    }
    assert {told for place, told in told_by(cells).items() if place[2] != "eu"} == {("job-1", "completed")}
    assert len(cells) == 18
    answer = cells["question-2", "model-1", "eu"]
    assert answer["excerpt"] == "again-2"
    whole = await stage.http.get(f"/v1/jobs/{answer['job_id']}/executions/{answer['id']}")
    assert whole.json()["output"]["text"] == "again-2"

    assert told_by(await shown(stage, status="timed_out")) == {
        ("question-1", "model-1", "eu"): ("again-1", "timed_out")
    }
    assert set(await shown(stage, question="question-1", model="model-0", region=["us", "eu"])) == {
        ("question-1", "model-0", "us"), ("question-1", "model-0", "eu"),
    }  # fmt: skip
    matrix = (await stage.http.get("/v1/jobs/job-1/matrix", params={"merged": "true", "limit": 2})).json()
    assert matrix["jobs"] == ["job-1", "again-1", "again-2"]
    rest = await shown(stage, limit=2, cursor=matrix["next_cursor"])
    assert rest == {place: cell for place, cell in cells.items() if place[0] == "question-2"}
    other = await stage.http.get("/v1/jobs/job-1/matrix", params={"cursor": matrix["next_cursor"]})
    assert other.status_code == 422, "a cursor of the merged matrix reads no other"
    assert (await stage.http.get("/v1/jobs/job-1/matrix", params={"merged": "yes"})).status_code == 422
    assert (await stage.http.get("/v1/jobs/again-2/matrix", params={"merged": "true"})).json()["jobs"] == ["again-2"]


async def test_a_retry_without_an_answer_takes_none_away(stage: Stage) -> None:
    await one_job(stage, {0: FAILED}, questions=1)
    spec = await retried(stage, "job-1", "again", status=["completed", "failed"], model=["model-0"])
    await run(stage, "again", spec, {"model-0": FAILED}, after_s=100)
    cells = told_by(await shown(stage))
    assert cells["question-0", "model-0", "us"] == ("job-1", "completed")
    assert cells["question-0", "model-0", "eu"] == ("again", "failed")
    assert cells["question-0", "model-1", "eu"] == ("job-1", "failed")


async def test_jobs_that_claim_to_repeat_each_other_are_merged_once(stage: Stage) -> None:
    await stage.accept("job-1", job_document(1, retry_of="job-2"))
    models = [{"id": "model-9", "model": "smollm2-135m"}, *job_document()["models"]]
    spec = await stage.accept("job-2", job_document(2, retry_of="job-1", models=models))
    await stage.store(facts.every(await stage.open("job-1", await stage.accept("job-1", job_document(1)), 0)))
    for index in range(2):
        await stage.store(facts.every(await stage.open("job-2", spec, index)))
    matrix = (await stage.http.get("/v1/jobs/job-1/matrix", params={"merged": "true"})).json()
    assert matrix["jobs"] == ["job-1", "job-2"]
    assert len(matrix["rows"]) == 1, "only the job's own questions"
    assert {model for _, model, _ in await shown(stage)} == {"model-0", "model-1"}, "only the job's own models"


async def test_more_jobs_than_one_answer_can_hold_are_not_merged(stage: Stage) -> None:
    await stage.complete_job("job-1", 1)
    retries = text("""
        INSERT INTO results.jobs (job_id, created_at, retry_of)
        SELECT 'again-' || n, now(), 'job-1' FROM generate_series(1, :count) AS n
    """)
    async with stage.engine.begin() as connection:
        await connection.execute(retries, {"count": MAX_MERGED_JOBS})
    problem = (await stage.http.get("/v1/jobs/job-1/matrix", params={"merged": "true"})).json()
    assert (problem["status"], problem["type"]) == (413, "urn:parallax:problem:too-large")
    assert (await stage.http.get("/jobs/job-1")).status_code == 200


async def test_the_page_of_a_job_leads_to_the_merged_answers(stage: Stage) -> None:
    await one_job(stage, {1: FAILED})
    assert "merged=true" not in (await stage.http.get("/jobs/job-1")).text
    spec = await retried(stage, "job-1", "again")
    await run(stage, "again", spec, {"model-0": COMPLETED, "model-1": COMPLETED}, after_s=100)
    own = (await stage.http.get("/jobs/job-1")).text
    assert 'href="/jobs/job-1?merged=true#answers"' in own
    assert "/jobs/again/executions/" not in own
    merged = (await stage.http.get("/jobs/job-1", params={"merged": "true"})).text
    assert merged.count('href="/jobs/again/executions/') == 2
    assert merged.count("from again") == 2
    assert 'name="merged" value="true"' in merged, "the form keeps what is shown"
