"""A job of 15 MB, legal or hostile, holds up no other: neither in the dispatcher nor in the API.

Processor time of the service between two ticks of its event loop is what it did itself; the wall clock also shows what
else the machine does, so that it has a generous bound here. ``tests/benchmarks/bench_submission.py`` prints both.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.port import Delivery
from parallax.bus.serve import serve
from parallax.clock import SystemClock
from parallax.contracts.intake import MAX_PROBLEMS
from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.messages import BatchOpened, JobAccepted, JobRejected, SubmitJob, decode
from parallax.contracts.routing import DEAD_LETTERS, SUBMISSIONS
from parallax.db.engine import create_engine
from parallax.db.migrations import migrate
from parallax.errors import UnavailableError
from parallax.worker.process import LARGE_BYTES, Limits, Worker
from results.api.queries.jobs import LISTED_METADATA_BYTES
from tests.fakes.large_jobs import KINDS, LargeJob, large_job
from tests.harness.results import rows
from tests.harness.stalls import Strain, measured
from tests.integration import api_stage
from tests.integration.dispatcher_stage import Stage, bare_handlers, dispatching, job_document, staged

HEADERS: Final = {"Content-Type": "application/json", "Idempotency-Key": "large"}
PATIENCE_S: Final = 120.0
STORED: Final = "SELECT count(*) AS n FROM dispatcher.questions WHERE job_id = 'large'"
MAX_BUSY_S: Final = 0.25
"""The target is 0.1 s, and 0.01 to 0.05 s is usual; a processor that many share runs at a fraction of its speed."""
MAX_STALL_UNDER_LOAD_S: Final = 3.0
"""What other programs of the machine take counts here; ``make bench-submission`` prints the figure of an idle one."""
MAX_MEMORY_BYTES: Final = 300 * 1024 * 1024
SLOW: Final = pytest.mark.slow
SOME: Final = ("20,000 questions with emoji", "5 million empty lists", "100,000 executions chosen")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=12)
    yield engine
    await engine.dispose()


def assert_light(strain: Strain) -> None:
    assert strain.busy_s < MAX_BUSY_S, strain
    assert strain.stall_s < MAX_STALL_UNDER_LOAD_S, strain
    assert 0 < strain.memory_bytes < MAX_MEMORY_BYTES, strain


def message(job: LargeJob, job_id: str = "large") -> bytes:
    return b'{"job_id":"' + job_id.encode() + b'","job":' + job.body + b"}"


async def answer_to(stage: Stage, body: bytes, name: str = "large") -> JobAccepted | JobRejected:
    """What the dispatcher says to a submission, however long it takes."""
    replies = stage.bus.replies(name)
    await stage.bus.publish_raw(SUBMISSIONS, body, reply_to=name)
    async with asyncio.timeout(PATIENCE_S):
        answer = decode((await replies.get()).body)
    assert isinstance(answer, JobAccepted | JobRejected)
    return answer


async def opened(stage: Stage, job_id: str, batches: int) -> None:
    """Wait until a job has opened so many batches."""
    async with asyncio.timeout(PATIENCE_S):
        while len(stage.heard(BatchOpened, job_id)) < batches:  # noqa: ASYNC110 - what is said sets no event of ours
            await asyncio.sleep(0.02)


# --- the dispatcher


@pytest.mark.parametrize("kind", [kind if kind in SOME else pytest.param(kind, marks=SLOW) for kind in KINDS])
async def test_a_large_submission_stalls_no_other_job(engine: AsyncEngine, kind: str) -> None:
    job = large_job(kind)
    body = message(job)
    async with staged(engine) as stage, dispatching(stage):
        await stage.run_executors()
        await stage.submit("other", job_document(questions=400))
        await opened(stage, "other", 5)
        async with measured() as strain:
            answering = asyncio.create_task(answer_to(stage, body))
            await opened(stage, "other", 25)
            answered_first = answering.done()
            answer = await answering
            if job.problem is None:
                await opened(stage, "large", 1)
    assert not answered_first, "the other job goes on meanwhile"
    if job.problem is None:
        assert isinstance(answer, JobAccepted), answer
        assert await rows(engine, STORED) == [{"n": 20_000}]
    else:
        assert isinstance(answer, JobRejected)
        assert any(job.problem in problem.message for problem in answer.problems), answer.problems[:3]
        assert len(answer.problems) <= MAX_PROBLEMS
    assert_light(strain)


async def test_small_submissions_pass_those_that_are_worked_on(engine: AsyncEngine) -> None:
    """Large submissions wait for each other, one after the other, and a small one that comes later for none of them."""
    body = message(large_job("20,000 unknown keys"))
    async with staged(engine) as stage, dispatching(stage):
        large = [asyncio.create_task(answer_to(stage, body, f"large-{number}")) for number in range(4)]
        await asyncio.sleep(0)
        small = await answer_to(stage, json.dumps({"job_id": "small", "job": job_document()}).encode(), "small")
        waiting = sum(not task.done() for task in large)
        await asyncio.gather(*large)
    assert isinstance(small, JobAccepted)
    assert waiting >= 3


class Failing(Worker):
    """A worker that is ended in the middle of a document, by itself or by its time limit."""

    def __init__(self, work: str) -> None:
        super().__init__(f"tests.fakes.documents:{work}", limits=Limits(time_s=3.0))
        self.documents = 0

    async def run(self, argument: bytes, document: bytes) -> list[bytes]:
        """Count the documents."""
        self.documents += 1
        return await super().run(b"/dev/null", document)


@pytest.mark.parametrize(("work", "reason"), [("die", "failed"), ("stall", "takes longer than 3 s")])
async def test_what_ends_a_worker_is_refused_and_never_given_to_another(
    engine: AsyncEngine, work: str, reason: str
) -> None:
    worker = Failing(work)
    body = message(large_job("20,000 questions"))
    async with staged(engine) as stage, serving_submissions(stage, worker):
        answer = await answer_to(stage, body)
        assert isinstance(answer, JobRejected)
        assert (answer.job_id, answer.reason.code) == ("large", "invalid")
        assert reason in answer.problems[0].message
        await stage.until(lambda: answer in stage.said)
        nameless = await answer_to(stage, body.replace(b'{"job_id":"large",', b"{", 1), "nameless")
        assert isinstance(nameless, JobRejected)
        assert nameless.job_id is None
        await stage.until_turning(lambda: stage.broker.depth(DEAD_LETTERS) == 1)
        assert stage.broker.depth(SUBMISSIONS) == 0
    assert worker.documents == 2


async def test_a_worker_that_cannot_be_started_leaves_the_submission_for_later(engine: AsyncEngine) -> None:
    class Absent(Worker):
        async def run(self, argument: bytes, document: bytes) -> list[bytes]:
            raise UnavailableError("no process can be started")

    async with staged(engine) as stage:
        handlers = bare_handlers(stage.bus, engine, stage.clock, worker=Absent("no:thing"))
        deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        await stage.bus.consume(SUBMISSIONS, prefetch=1, handler=deliveries.put_nowait)
        await stage.bus.publish_raw(SUBMISSIONS, message(large_job("20,000 unknown keys")))
        with pytest.raises(UnavailableError):
            await handlers.submit(await deliveries.get())
    assert stage.said == []


@asynccontextmanager
async def serving_submissions(stage: Stage, worker: Worker) -> AsyncIterator[None]:
    """Submissions handled with a worker of the test's own."""
    await migrate(stage.engine, package="dispatcher", schema="dispatcher")
    handlers = bare_handlers(stage.bus, stage.engine, stage.clock, worker=worker)
    serving = await serve(stage.bus, SUBMISSIONS, prefetch=8, handler=handlers.submit, clock=SystemClock())
    yield
    await serving.close()


async def test_a_retry_of_a_part_is_stored_whole_from_a_worker(engine: AsyncEngine) -> None:
    """Rows of questions and of chosen batches come in several pieces, each in its place."""
    body = message(large_job("100,000 executions chosen"))
    async with staged(engine) as stage, dispatching(stage):
        answer = await answer_to(stage, body)
    assert isinstance(answer, JobAccepted)
    assert (answer.questions, answer.batches, answer.executions) == (20_000, 20_000, 100_000)
    (found,) = await rows(
        engine,
        """SELECT count(*) AS n, sum(size) AS executions, min(question_index) AS first, max(question_index) AS last
           FROM dispatcher.chosen_batches WHERE job_id = 'large'""",
    )
    assert found == {"n": 20_000, "executions": 100_000, "first": 0, "last": 19_999}
    assert await rows(engine, "SELECT id, text FROM dispatcher.questions WHERE question_index = 12345") == [
        {"id": "q12345", "text": "Why?"}
    ]


# --- the API


@pytest.mark.parametrize("kind", [*SOME, "7.7 million numbers", "a million keys", "20,000 unknown keys"])
async def test_a_large_request_stalls_no_other_request(database_url: str, kind: str) -> None:
    job = large_job(kind)
    body = job.body.replace(b'"tiny"', b'"smollm2-135m"')
    body = body[:-50] if len(body) > MAX_JOB_BYTES - 300 else body  # the model's name is longer
    async with api_stage.staged(database_url) as stage:
        await stage.http.get("/v1/jobs")
        async with measured() as strain:
            posting = asyncio.create_task(stage.http.post("/v1/jobs", content=body, headers=HEADERS))
            answered = 0
            while not posting.done():
                assert (await stage.http.get("/v1/jobs")).status_code == 200
                answered += 1
            response = await posting
    assert answered > 5
    if job.problem is None:
        assert response.status_code == 202, response.text
    else:
        assert response.status_code in {400, 422}, response.text
        assert job.problem in response.text
    assert_light(strain)


async def test_a_request_whose_worker_is_ended_is_refused_with_the_reason(database_url: str) -> None:
    body = large_job("20,000 unknown keys").body
    async with api_stage.staged(database_url) as stage:
        stage.app.state.api = replace(stage.app.state.api, worker=Failing("die"))
        response = await stage.http.post("/v1/jobs", content=body, headers=HEADERS)
        assert response.status_code == 422
        assert "failed" in response.json()["errors"][0]["message"]
        small = await stage.http.post("/v1/jobs", json=api_stage.job_document())
        assert small.status_code == 202


async def test_a_large_job_is_published_as_it_was_sent_and_read_alike(database_url: str) -> None:
    document = api_stage.job_document(questions=5_000, metadata={"team": "\u20ac"})
    body = json.dumps(document, indent=1).encode()
    assert len(body) > LARGE_BYTES
    async with api_stage.staged(database_url) as stage:
        response = await stage.http.post("/v1/jobs", content=body, headers=HEADERS)
        assert response.status_code == 202, response.text
        assert response.json()["executions"] == 30_000
        again = await stage.http.post("/v1/jobs", content=json.dumps(document).encode(), headers=HEADERS)
        assert again.json() == response.json(), "the same job, written in another way"
        first, second = await stage.published(SUBMISSIONS)
    assert isinstance(first, SubmitJob)
    assert isinstance(second, SubmitJob)
    assert first.job == second.job
    assert first.job.model_dump(mode="json", exclude_defaults=True) == document | {
        "questions": [{"id": q["id"], "text": q["text"]} for q in document["questions"]]
    }


async def test_lists_leave_out_large_metadata(database_url: str) -> None:
    small = {"a": "x" * (LISTED_METADATA_BYTES - 20)}
    large = {"team": "red", "a": "x" * LISTED_METADATA_BYTES, "b": list(range(10_000))}
    async with api_stage.staged(database_url) as stage:
        for name, metadata in (("small", small), ("large", large)):
            document = api_stage.job_document(metadata=metadata)
            response = await stage.http.post("/v1/jobs", json=document, headers={"Idempotency-Key": name})
            assert response.status_code == 202, response.text
        listed = {job["id"]: job for job in (await stage.http.get("/v1/jobs")).json()["items"]}
        assert (listed["small"]["metadata"], listed["small"]["metadata_omitted"]) == (small, False)
        assert (listed["large"]["metadata"], listed["large"]["metadata_omitted"]) == ({}, True)
        whole = (await stage.http.get("/v1/jobs/large")).json()
        assert whole["metadata"] == large
        found = await stage.http.get("/v1/jobs", params={"metadata": "team=red"})
        assert [job["id"] for job in found.json()["items"]] == ["large"]
