"""Submitting and cancelling over HTTP: safe to repeat, visible at once, all or nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.messages import CancelJob, SubmitJob
from parallax.contracts.outcomes import JobOutcome
from parallax.contracts.routing import PROGRESS, SUBMISSIONS
from tests.integration.api_stage import Stage, job_document, staged


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    async with staged(database_url) as running:
        yield running


async def submitted(stage: Stage, document: dict[str, Any], key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Idempotency-Key": key} if key else {}
    response = await stage.http.post("/v1/jobs", json=document, headers=headers)
    return response.status_code, response.json()


async def test_a_submission_is_published_and_can_be_read_at_once(stage: Stage) -> None:
    response = await stage.http.post("/v1/jobs", json=job_document(metadata={"team": "red"}))
    assert response.status_code == 202
    answer = response.json()
    assert answer["id"].startswith("survey-")
    assert (answer["status"], answer["executions"], answer["batches"]) == ("submitted", 18, 3)
    job = (await stage.http.get(response.headers["location"])).json()
    assert (job["id"], job["status"], job["name"], job["executions"]) == (answer["id"], "submitted", "survey", 18)
    assert job["metadata"] == {"team": "red"}
    (message,) = await stage.published(SUBMISSIONS)
    assert isinstance(message, SubmitJob)
    assert (message.job_id, len(message.job.questions)) == (answer["id"], 3)


async def test_the_same_submission_again_gives_the_same_answer(stage: Stage) -> None:
    first = await submitted(stage, job_document(), "my-job")
    reordered = dict(reversed(job_document(samples=1).items()))
    assert await submitted(stage, reordered, "my-job") == first
    assert first[1]["id"] == "my-job"
    status, problem = await submitted(stage, job_document(2), "my-job")
    assert (status, problem["type"]) == (409, "urn:parallax:problem:conflict")


async def test_any_idempotency_key_will_do(stage: Stage) -> None:
    first = await submitted(stage, job_document(), "Any Key: 7")
    assert await submitted(stage, job_document(), "Any Key: 7") == first
    assert (await submitted(stage, job_document(), "any key: 7"))[1]["id"] != first[1]["id"]
    assert (await submitted(stage, job_document()))[1]["id"] != first[1]["id"]


async def test_submissions_that_race_make_one_job(stage: Stage) -> None:
    answers = await asyncio.gather(*(submitted(stage, job_document(), "raced") for _ in range(4)))
    assert answers == [answers[0]] * 4
    assert answers[0][0] == 202
    conflict = await asyncio.gather(*(submitted(stage, job_document(n), "contested") for n in range(1, 5)))
    assert sorted(status for status, _ in conflict) == [202, 409, 409, 409]


async def test_an_id_of_a_job_that_came_as_a_message_is_a_conflict(stage: Stage) -> None:
    await stage.accept("job-1")
    assert (await submitted(stage, job_document(), "job-1"))[0] == 409


async def test_nothing_is_stored_while_the_broker_is_away(stage: Stage) -> None:
    await stage.bus.close()
    status, problem = await submitted(stage, job_document(), "lost")
    assert (status, problem["type"]) == (503, "urn:parallax:problem:unavailable")
    assert (await stage.http.get("/v1/jobs/lost")).status_code == 404
    async with stage.engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM results.jobs"))).scalar_one() == 0


async def test_a_bad_job_is_told_everything_and_stores_nothing(stage: Stage) -> None:
    document = job_document(regions=["us", "mars"], colour="red")
    document["questions"][1]["text"] = ""
    status, problem = await submitted(stage, document)
    assert (status, problem["type"]) == (422, "urn:parallax:problem:invalid-job")
    places = {error["pointer"]: error.get("allowed") for error in problem["errors"]}
    assert {"/colour", "/questions/1/text", "/regions/1"} <= places.keys()
    assert places["/regions/1"] == "apac, eu, us"
    assert await stage.published(SUBMISSIONS) == []
    assert (await stage.http.get("/v1/jobs")).json()["items"] == []


async def test_a_job_that_no_message_can_carry_is_refused_at_once(stage: Stage) -> None:
    """A message holds the job's id as well, so that the largest body makes one that is too large."""
    document = job_document(questions=20_000)
    for question in document["questions"]:
        question["text"] = "why? " * 148
    body = json.dumps(document).encode()
    body += b" " * (MAX_JOB_BYTES - len(body))
    response = await stage.http.post(
        "/v1/jobs", content=body, headers={"Content-Type": "application/json", "Idempotency-Key": "large"}
    )
    assert (response.status_code, response.json()["type"]) == (413, "urn:parallax:problem:too-large")
    assert await stage.published(SUBMISSIONS) == []
    assert (await stage.http.get("/v1/jobs/large")).status_code == 404


async def test_a_cancel_is_published_until_the_job_has_ended(stage: Stage) -> None:
    await stage.accept("job-1")
    response = await stage.http.post("/v1/jobs/job-1/cancel", json={"reason": "wrong model"})
    assert (response.status_code, response.json()["id"]) == (202, "job-1")
    (message,) = await stage.published(PROGRESS)
    assert isinstance(message, CancelJob)
    assert (message.job_id, message.reason) == ("job-1", "wrong model")
    assert (await stage.http.post("/v1/jobs/job-1/cancel")).status_code == 202  # a body is not needed
    assert len(await stage.published(PROGRESS)) == 1
    await stage.finish("job-1", JobOutcome.CANCELLED)
    assert (await stage.http.post("/v1/jobs/job-1/cancel")).json()["status"] == "cancelled"
    assert await stage.published(PROGRESS) == []
    assert (await stage.http.post("/v1/jobs/nobody/cancel")).status_code == 404


@pytest.mark.parametrize("body", [{"reason": ""}, {"reason": "a\0b"}, {"reason": 7}, {"why": "x"}, [], "x"])
async def test_a_bad_reason_cancels_nothing(stage: Stage, body: object) -> None:
    await stage.accept("job-1")
    response = await stage.http.post("/v1/jobs/job-1/cancel", json=body)
    assert response.status_code == 422, response.text
    assert await stage.published(PROGRESS) == []
