"""Submissions and whole jobs, through the dispatcher's real composition."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from dispatcher.settings import Settings
from parallax.bus.memory import MemoryBroker
from parallax.contracts.job import MAX_JOB_BYTES
from parallax.contracts.messages import (
    BatchCompleted,
    BatchOpened,
    ExecutionTask,
    JobAccepted,
    JobCancelled,
    JobRejected,
    JobStarted,
)
from parallax.contracts.outcomes import ChatMessage, Counts, ExecutionStatus, JobOutcome
from parallax.contracts.plan import BatchRef
from parallax.contracts.routing import DEAD_LETTERS, PROGRESS
from parallax.db.engine import create_engine
from tests.integration.dispatcher_stage import Stage, dispatching, job_document, staged


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, application_name="test", pool_size=8)
    yield engine
    await engine.dispose()


@pytest.fixture
async def stage(engine: AsyncEngine) -> AsyncIterator[Stage]:
    async with staged(engine) as stage, dispatching(stage):
        yield stage


async def test_a_job_runs_one_question_at_a_time(stage: Stage) -> None:
    await stage.run_executors()
    answer = await stage.submit("job")
    assert isinstance(answer, JobAccepted)
    assert (answer.questions, answer.batches, answer.executions) == (3, 3, 6)
    end = await stage.finished("job")
    assert (end.outcome, end.counts, end.not_started) == (JobOutcome.COMPLETED, Counts(completed=6), 0)
    kinds = [type(message) for message in stage.said if not isinstance(message, ExecutionTask | BatchOpened)]
    assert kinds[:2] == [JobAccepted, JobStarted]
    tasks = stage.heard(ExecutionTask, "job")
    assert len({task.execution_id for task in tasks}) == len(tasks) == 6
    assert all(a.batch.question_index <= b.batch.question_index for a, b in pairwise(tasks)), "the barrier holds"


async def test_a_lane_per_region(stage: Stage) -> None:
    await stage.run_executors("us")
    await stage.submit("job", job_document(barrier="region"))
    await stage.until(lambda: len(stage.heard(ExecutionTask, "job")) == 3)
    assert {(o.batch.lane, o.batch.question_index) for o in stage.heard(BatchOpened, "job")} == {
        ("us", 0), ("us", 1), ("us", 2), ("eu", 0),
    }  # fmt: skip
    await stage.run_executors("eu")
    end = await stage.finished("job")
    assert end.counts == Counts(completed=6)


async def test_the_opening_of_a_batch_tells_the_whole_question(stage: Stage) -> None:
    question = {"id": "q", "text": "Why? 東京", "tags": ["odd"], "metadata": {"weight": 2.5, "deep": [{"a": None}]}}
    await stage.run_executors()
    await stage.submit("job", job_document() | {"questions": [question]})
    await stage.finished("job")
    (opened,) = stage.heard(BatchOpened, "job")
    assert opened.question is not None
    assert opened.question.model_dump(mode="json") == question


async def test_a_task_says_all_an_executor_needs(stage: Stage) -> None:
    await stage.run_executors("us")
    await stage.submit(
        "job",
        job_document(
            questions=1,
            models=[{"id": "cold", "model": "tiny", "parameters": {"temperature": 0}, "regions": ["us"]}],
            system_prompt="{{You}} are {model} in {region_name} ({region}), asked {question_id}.",
            parameters={"temperature": 0.7, "max_tokens": 64, "seed": 2**31 - 1},
            samples=2,
            limits={"batch_deadline_s": 60, "job_deadline_s": 50},
        ),
    )
    await stage.finished("job")
    first, second = sorted(stage.heard(ExecutionTask, "job"), key=lambda task: task.sample)
    assert first.messages == (
        ChatMessage(role="system", content="{You} are tiny in the United States (us), asked q0."),
        ChatMessage(role="user", content="Question 0?"),
    )
    assert (first.model_id, first.model, first.region) == ("cold", "tiny", "us")
    assert (first.parameters.temperature, first.parameters.max_tokens) == (0, 64)
    assert (first.parameters.seed, second.parameters.seed) == (2**31 - 1, 0), "seeds wrap around"
    assert (first.deadline_at - first.published_at).total_seconds() == 50, "a batch never outlives its job"
    assert first.execution_id != second.execution_id


async def test_a_part_of_a_matrix_runs_just_that(stage: Stage) -> None:
    await stage.run_executors()
    only = [
        {"question_id": "q3", "model_id": "tiny", "region": "us"},
        {"question_id": "q1", "model_id": "tiny", "region": "us"},
        {"question_id": "q2", "model_id": "tiny", "region": "eu"},
    ]
    answer = await stage.submit("job", job_document(questions=5, barrier="region", only=only, retry_of="origin"))
    assert isinstance(answer, JobAccepted)
    assert (answer.batches, answer.executions, answer.retry_of) == (3, 3, "origin")
    end = await stage.finished("job")
    assert (end.counts, end.not_started) == (Counts(completed=3), 0)
    opened = [(o.batch.lane, o.batch.question_index, o.executions) for o in stage.heard(BatchOpened, "job")]
    assert sorted(opened) == [("eu", 2, 1), ("us", 1, 1), ("us", 3, 1)]
    assert {(t.question_id, t.region) for t in stage.heard(ExecutionTask, "job")} == {
        ("q3", "us"), ("q1", "us"), ("q2", "eu"),
    }  # fmt: skip


async def test_failures_below_the_success_rate_fail_the_job(stage: Stage) -> None:
    stage.outcome = lambda task: ExecutionStatus.FAILED if task.region == "eu" else ExecutionStatus.COMPLETED
    await stage.run_executors()
    await stage.submit("job")
    end = await stage.finished("job")
    assert (end.outcome, end.reason.code) == (JobOutcome.FAILED, "below_min_success_rate")
    assert end.counts == Counts(completed=3, failed=3)


async def test_a_hopeless_job_is_stopped_early(stage: Stage) -> None:
    stage.outcome = lambda _task: ExecutionStatus.FAILED
    await stage.run_executors()
    await stage.submit("job", job_document(questions=9, stop_when={"failure_rate": 0.5, "after_batches": 2}))
    end = await stage.finished("job")
    assert (end.outcome, end.reason.code, end.not_started) == (JobOutcome.FAILED, "stopped_early", 14)
    assert [c.reason.code for c in stage.heard(JobCancelled, "job")] == ["stopped_early"]
    assert len(stage.heard(ExecutionTask, "job")) == 4


async def test_the_same_submission_again_changes_nothing(stage: Stage) -> None:
    await stage.run_executors()
    first = await stage.submit("job")
    end = await stage.finished("job")
    said = len(stage.said)
    again = await stage.submit("job", dict(reversed(job_document().items())))
    assert again == first, "it is the content that counts, not how it is written down"
    await stage.until(lambda: len(stage.said) > said + 1)
    assert stage.said[said:] == [first, end]


async def test_an_id_that_is_taken_is_a_conflict_told_to_its_sender_only(stage: Stage) -> None:
    await stage.run_executors()
    await stage.submit("job")
    conflict = await stage.submit("job", job_document(name="another"))
    assert isinstance(conflict, JobRejected)
    assert (conflict.job_id, conflict.reason.code) == ("job", "conflict")
    invalid = await stage.submit("job", job_document(name=""))
    assert isinstance(invalid, JobRejected)
    assert invalid.reason.code == "invalid"
    end = await stage.finished("job")
    assert end.outcome is JobOutcome.COMPLETED
    assert stage.heard(JobRejected) == []


async def test_an_invalid_job_is_rejected_with_every_problem(stage: Stage) -> None:
    answer = await stage.submit("job", job_document(regions=["us", "mars"], models=[{"id": "gpt"}], samples=0, x=1))
    assert isinstance(answer, JobRejected)
    assert {problem.pointer for problem in answer.problems} == {
        "/job/regions/1", "/job/models/0/id", "/job/samples", "/job/x",
    }  # fmt: skip
    await stage.until(lambda: stage.said == [answer])


HOSTILE = {
    "not JSON": b"{",
    "not UTF-8": b'{"job_id": "\xff"}',
    "NaN": b'{"job_id": NaN}',
    "not an object": b'["job"]',
    "nested too deeply": b"[" * 200_000,
    "no job id": json.dumps({"job": job_document()}).encode(),
    "an unusable job id": json.dumps({"job_id": "Job 1", "job": job_document()}).encode(),
    "a number as job id": json.dumps({"job_id": 7, "job": job_document()}).encode(),
    "too large, and no usable id": json.dumps({"job_id": "Job 1", "job": "x" * MAX_JOB_BYTES}).encode(),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_names_no_job_is_answered_and_kept_as_a_dead_letter(stage: Stage, body: bytes) -> None:
    answer = await stage.submit_raw(body)
    assert isinstance(answer, JobRejected)
    assert (answer.job_id, answer.reason.code) == (None, "invalid")
    await stage.until_turning(lambda: stage.broker.depth(DEAD_LETTERS) == 1)
    assert stage.said == []


MISSHAPEN: dict[str, object] = {
    "a number": 7,
    "null": None,
    "a list": [],
    "NUL in a text": job_document(name="a\0b"),
    "NUL in a key": job_document(metadata={"a\0": 1}),
    "half a surrogate pair": job_document(metadata={"a": "\ud800"}),
    "a text for a list": {**job_document(), "questions": "all"},
    "lists for ids": job_document(only=[{"question_id": []}], models=[{"id": {}}]),
    "a number for a list": job_document(models=[{"id": "tiny", "regions": 7}], only=[{"question_id": "q0"}]),
}


@pytest.mark.parametrize("document", MISSHAPEN.values(), ids=MISSHAPEN.keys())
async def test_a_job_of_the_wrong_shape_is_rejected(stage: Stage, document: object) -> None:
    answer = await stage.submit_raw(json.dumps({"job_id": "job", "job": document}).encode())
    assert isinstance(answer, JobRejected)
    assert (answer.job_id, answer.reason.code) == ("job", "invalid")
    await stage.until(lambda: stage.said == [answer])
    assert "\0" not in answer.model_dump_json()


async def test_more_jobs_than_may_be_active_wait_in_order(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(max_active_jobs=2)):
        for number in range(5):
            await stage.submit(f"job{number}", job_document(questions=2))
        await stage.until(lambda: len(stage.heard(BatchOpened)) == 2)
        await stage.cancel("job3")
        await stage.finished("job3")
        assert [started.job_id for started in stage.heard(JobStarted)] == ["job0", "job1"]
        await stage.run_executors()
        for number in (0, 1, 2, 4):
            await stage.finished(f"job{number}")
        assert [started.job_id for started in stage.heard(JobStarted)] == ["job0", "job1", "job2", "job4"]


async def test_a_job_whose_region_is_gone_fails_with_the_reason(engine: AsyncEngine) -> None:
    async with staged(engine, broker=MemoryBroker(["us"])) as stage, dispatching(stage):
        await stage.run_executors("us")
        await stage.submit("job")
        end = await stage.finished("job")
        assert (end.outcome, end.reason.code, end.not_started) == (JobOutcome.FAILED, "undeliverable", 4)
        assert end.counts.total == 2, "the batch was opened for good; what nobody could run of it is written off"
        assert "execution.run.eu" in end.reason.message
        assert [cancelled.reason.code for cancelled in stage.heard(JobCancelled, "job")] == ["undeliverable"]


async def test_a_region_that_goes_while_a_job_runs_ends_it(engine: AsyncEngine) -> None:
    only = [
        {"question_id": "q0", "model_id": "tiny", "region": "us"},
        {"question_id": "q1", "model_id": "tiny", "region": "eu"},
    ]
    async with staged(engine, broker=MemoryBroker(["us"])) as stage, dispatching(stage):
        await stage.run_executors("us")
        with capture_logs() as lines:
            await stage.submit("job", job_document(only=only))
            end = await stage.finished("job")
            await stage.submit("next")
        assert (end.outcome, end.reason.code) == (JobOutcome.FAILED, "undeliverable")
        assert (end.counts, end.not_started) == (Counts(completed=1, cancelled=1), 0)
        opened = [line["question_id"] for line in lines if line["event"] == "batch_opened"]
        assert opened == ["q0"], "a batch that could not be published is not reported as opened"


async def test_a_job_that_meets_a_bug_does_not_block_the_line(engine: AsyncEngine) -> None:
    async with staged(engine) as stage, dispatching(stage, settings=Settings(max_active_jobs=1)):
        await stage.submit("first", job_document(questions=1))
        await stage.submit("broken")
        await stage.submit("last")
        async with engine.begin() as connection:
            query = (
                "UPDATE dispatcher.jobs SET state = jsonb_set(state, '{lanes,0,name}', '\"mars\"') WHERE id = 'broken'"
            )
            await connection.execute(text(query))
        await stage.run_executors()
        assert (await stage.finished("last")).outcome is JobOutcome.COMPLETED
        assert stage.heard(JobStarted, "broken") == []


async def test_batches_are_logged_when_they_open_and_when_they_complete(stage: Stage) -> None:
    stage.outcome = lambda task: ExecutionStatus.FAILED if task.region == "eu" else ExecutionStatus.COMPLETED
    with capture_logs() as lines:
        await stage.submit("job", job_document(questions=1))
        await stage.until(lambda: bool(stage.heard(BatchOpened)))
        stage.clock.advance(2.5)
        await stage.run_executors()
        await stage.finished("job")
        await stage.submit("next")
    (opened,) = [line for line in lines if line["event"] == "batch_opened" and line["job_id"] == "job"]
    (completed,) = [line for line in lines if line["event"] == "batch_completed"]
    assert {"question_id": "q0", "lane": "all", "executions": 2}.items() <= opened.items()
    assert completed == {
        "event": "batch_completed", "log_level": "info", "job_id": "job", "question_id": "q0", "lane": "all",
        "counts": {"completed": 1, "failed": 1, "timed_out": 0, "cancelled": 0}, "duration_s": 2.5, "cut_off_by": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ref", "counts"),
    [
        (BatchRef(job_id="job", lane="mars", question_index=0), Counts(completed=2)),
        (BatchRef(job_id="job", lane="all", question_index=0), Counts(completed=3)),
        (BatchRef(job_id="job", lane="all", question_index=99), Counts(completed=2)),
    ],
)
async def test_an_impossible_completion_is_a_dead_letter(stage: Stage, ref: BatchRef, counts: Counts) -> None:
    await stage.submit("job")
    await stage.until(lambda: bool(stage.heard(BatchOpened)))
    await stage.bus.publish(BatchCompleted(batch=ref, counts=counts))
    await stage.until_turning(lambda: stage.broker.depth(DEAD_LETTERS) == 1)
    await stage.run_executors()
    assert (await stage.finished("job")).outcome is JobOutcome.COMPLETED


async def test_what_does_not_belong_into_the_queue_is_a_dead_letter(stage: Stage) -> None:
    await stage.bus.publish_raw(PROGRESS, b'{"kind": "job_started"}')
    await stage.bus.publish_raw(
        PROGRESS, JobStarted(job_id="j", started_at=stage.clock.now()).model_dump_json().encode()
    )
    await stage.until_turning(lambda: stage.broker.depth(DEAD_LETTERS) == 2)
