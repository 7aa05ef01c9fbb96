"""Submitting and cancelling over HTTP: safe to repeat, visible at once, and independent of a slow broker."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event

from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.contracts.job import MAX_JOB_BYTES, JobSpec
from parallax.contracts.messages import CancelJob, Message, SubmitJob
from parallax.contracts.outcomes import JobOutcome
from parallax.contracts.routing import PROGRESS, SUBMISSIONS
from parallax.errors import UnconfirmedError
from tests.fakes import facts
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


class Unconfirming(MemoryBus):
    """A client whose broker confirms nothing until it is told to."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.asked = asyncio.Semaphore(0)
        self.confirming = False
        self.giving_up = asyncio.Event()

    async def publish(self, *messages: Message) -> None:
        self.asked.release()
        if not self.confirming:
            await self.giving_up.wait()
            raise UnconfirmedError("publishing was not confirmed in time")
        await super().publish(*messages)


@asynccontextmanager
async def unconfirmed(database_url: str) -> AsyncIterator[tuple[Stage, Unconfirming]]:
    async with staged(database_url) as stage:
        bus = Unconfirming(stage.broker)
        stage.app.state.api = dataclasses.replace(stage.app.state.api, bus=bus)
        yield stage, bus


async def test_a_job_that_was_not_confirmed_is_published_by_the_same_request_again(database_url: str) -> None:
    async with unconfirmed(database_url) as (stage, bus):
        bus.giving_up.set()
        response = await stage.http.post("/v1/jobs", json=job_document())
        assert (response.status_code, response.json()["type"]) == (503, "urn:parallax:problem:unavailable")
        job_id = response.headers["location"].rpartition("/")[2]
        assert f"Idempotency-Key: {job_id}" in response.json()["detail"]
        assert "Retry-After" in response.headers
        assert (await stage.http.get(f"/v1/jobs/{job_id}")).json()["status"] == "submitted"
        assert await stage.published(SUBMISSIONS) == []

        bus.confirming = True
        assert (await submitted(stage, job_document(2), job_id))[0] == 409
        again = await submitted(stage, job_document(), job_id)
        assert (again[0], again[1]["id"], again[1]["status"]) == (202, job_id, "submitted")
        (message,) = await stage.published(SUBMISSIONS)
        assert isinstance(message, SubmitJob)
        assert message.job_id == job_id
        await stage.accept(job_id)
        assert (await submitted(stage, job_document(), job_id))[0] == 202
        assert await stage.published(SUBMISSIONS) == [], "the dispatcher has it"


async def test_a_broker_that_does_not_confirm_holds_nothing_of_the_database(database_url: str) -> None:
    async with unconfirmed(database_url) as (stage, bus):
        spec = await stage.accept("job-1", job_document(40))
        unblocked_s = [await flush_s(stage, spec, index) for index in range(20)]
        async with asyncio.TaskGroup() as posts:
            waiting = [posts.create_task(submitted(stage, job_document(), f"waits-{n}")) for n in range(24)]
            for _ in waiting:
                await asyncio.wait_for(bus.asked.acquire(), 30)
            blocked_s = [await flush_s(stage, spec, index) for index in range(20, 40)]
            assert stage.engine.pool.checkedout() == 0  # type: ignore[attr-defined] # the pool's own counter
            assert not any(each.done() for each in waiting)
            bus.giving_up.set()
        assert {each.result()[0] for each in waiting} == {503}
    assert sorted(blocked_s)[10] < 5 * sorted(unblocked_s)[10] + 0.1, "a flush of the ledger takes as long as before"


async def flush_s(stage: Stage, spec: JobSpec, index: int) -> float:
    batch = await stage.open("job-1", spec, index)
    began = time.monotonic()
    await stage.store(facts.every(batch))
    return time.monotonic() - began


async def test_nothing_is_published_while_the_database_is_away(stage: Stage) -> None:
    await stage.engine.dispose()
    event.listen(stage.engine.sync_engine, "do_connect", refuse)
    status, problem = await submitted(stage, job_document(), "lost")
    assert (status, problem["type"]) == (503, "urn:parallax:problem:unavailable")
    assert await stage.published(SUBMISSIONS) == []


def refuse(*_: object) -> None:
    raise ConnectionRefusedError("connection refused")


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
