"""Job events into the jobs' rows and their events, in every order."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.contracts.job import Barrier, Question
from parallax.contracts.messages import (
    BatchOpened,
    JobAccepted,
    JobCancelled,
    JobFinished,
    JobRejected,
    JobStarted,
    Problem,
)
from parallax.contracts.outcomes import Counts, JobOutcome, Reason
from parallax.contracts.plan import BatchRef, JobPlan, PlannedModel
from parallax.errors import PoisonError
from results import events, ledger
from results.events import Event
from results.facts import read_news
from results.projection import JobEvent, project
from results.writing import writing
from tests.fakes.facts import every, plan
from tests.harness.results import blocked, results_engine, row, rows

NOW = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
SPEC: dict[str, Any] = {"name": "bias", "models": [{"id": "m"}], "metadata": {"team": "東京", "round": 2}}
PLAN = JobPlan(barrier=Barrier.QUESTION, samples=1, models=(PlannedModel(model_id="m", regions=("us", "eu")),))

ACCEPTED = JobAccepted(
    job_id="job-1", name="bias", job=SPEC, plan=PLAN, questions=3, batches=3, executions=6, accepted_at=NOW,
    retry_of="job-0",
)  # fmt: skip
STARTED = JobStarted(job_id="job-1", started_at=NOW + timedelta(seconds=1))
CANCELLED = JobCancelled(
    job_id="job-1", reason=Reason(code="cancelled", message="too dear"), cancelled_at=NOW + timedelta(seconds=2)
)
OVERDUE = JobCancelled(
    job_id="job-1", reason=Reason(code="job_deadline", message="after 60 s"), cancelled_at=NOW + timedelta(seconds=2)
)


def finished(outcome: JobOutcome, code: str) -> JobFinished:
    return JobFinished(
        job_id="job-1",
        outcome=outcome,
        reason=Reason(code=code, message="that was it"),
        counts=Counts(completed=4, cancelled=2),
        not_started=1,
        finished_at=NOW + timedelta(seconds=3),
    )


COMPLETED = finished(JobOutcome.COMPLETED, "all_batches_completed")
ENDED_CANCELLED = finished(JobOutcome.CANCELLED, "cancelled")
ENDED_OVERDUE = finished(JobOutcome.FAILED, "job_deadline")
INVALID = JobRejected(
    job_id="job-1",
    reason=Reason(code="invalid", message="1 problem"),
    problems=(Problem(pointer="/regions/0", message="unknown region 'mars'", allowed="apac, eu, us"),),
    rejected_at=NOW - timedelta(seconds=9),
)
CONFLICT = INVALID.model_copy(update={"reason": Reason(code="conflict", message="the id belongs to another job")})


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with results_engine(database_url) as engine:
        yield engine


async def told(engine: AsyncEngine, *some: JobEvent) -> dict[str, Any]:
    for event in some:
        await project(engine, event, NOW)
    return await job(engine)


async def job(engine: AsyncEngine) -> dict[str, Any]:
    return await row(engine, "SELECT * FROM results.jobs WHERE job_id = 'job-1'")


async def kinds(engine: AsyncEngine) -> list[str]:
    return [each["kind"] for each in await rows(engine, "SELECT kind FROM results.events ORDER BY job_id, number")]


async def test_a_job_goes_from_queued_to_its_outcome(engine: AsyncEngine) -> None:
    steps = [(await told(engine, event))["status"] for event in (ACCEPTED, STARTED, COMPLETED)]

    assert steps == ["queued", "running", "completed"]
    assert await kinds(engine) == ["job.accepted", "job.started", "job.finished"]


async def test_everything_said_about_a_job_is_kept(engine: AsyncEngine) -> None:
    stored = await told(engine, ACCEPTED, STARTED, CANCELLED, ENDED_CANCELLED)

    wanted = {
        "name": "bias",
        "spec": SPEC,
        "plan": PLAN.model_dump(mode="json"),
        "questions": 3,
        "batches": 3,
        "executions": 6,
        "retry_of": "job-0",
        "metadata": SPEC["metadata"],
        "accepted_at": NOW,
        "started_at": STARTED.started_at,
        "cancelled_at": CANCELLED.cancelled_at,
        "cancelled_reason": CANCELLED.reason.model_dump(),
        "finished_at": ENDED_CANCELLED.finished_at,
        "reason": ENDED_CANCELLED.reason.model_dump(),
        "outcome": "cancelled",
        "counts": ENDED_CANCELLED.counts.model_dump(),
        "not_started": 1,
        "created_at": NOW,
    }
    assert {column: stored[column] for column in wanted} == wanted


STORIES: list[tuple[tuple[JobEvent, ...], str, str]] = [
    ((ACCEPTED, STARTED, COMPLETED), "completed", "all_batches_completed"),
    ((ACCEPTED, STARTED, CANCELLED), "cancelled", "cancelled"),
    ((ACCEPTED, STARTED, CANCELLED, ENDED_CANCELLED), "cancelled", "cancelled"),
    ((ACCEPTED, STARTED, OVERDUE, ENDED_OVERDUE), "failed", "job_deadline"),
    ((ACCEPTED, CANCELLED), "cancelled", "cancelled"),
    ((ACCEPTED, INVALID, STARTED), "running", ""),
]


@pytest.mark.parametrize(("story", "status", "code"), STORIES)
async def test_every_order_of_events_with_repetitions_ends_the_same(
    engine: AsyncEngine, story: tuple[JobEvent, ...], status: str, code: str
) -> None:
    ends: list[dict[str, Any]] = []
    for order in permutations(story):
        statuses = [(await told(engine, event))["status"] for event in (*order, *reversed(order))]
        assert statuses == sorted(statuses, key=rank), "a job moved backwards"
        ends.append(await job(engine))
        for table in ("jobs", "events", "event_heads"):
            async with writing(engine) as connection:
                await connection.exec_driver_sql(f"DELETE FROM results.{table}")
    for end in ends:
        for column in ("rejected_at", "rejected_reason", "problems"):
            end.pop(column)  # a rejection is kept or not; nobody sees it once the job is accepted

    assert all(end == ends[0] for end in ends)
    assert ends[0]["status"] == status
    assert (ends[0]["reason"] or {}).get("code", "") == code


def rank(status: str) -> int:
    order = ("submitted", "rejected", "queued", "running", "cancelled", "completed", "failed")
    return min(order.index(status), 5)


async def test_a_repetition_makes_no_event(engine: AsyncEngine) -> None:
    await told(engine, ACCEPTED, ACCEPTED, STARTED, STARTED, CANCELLED, CANCELLED, ENDED_CANCELLED, ENDED_CANCELLED)

    assert await kinds(engine) == ["job.accepted", "job.started", "job.cancelled", "job.finished"]


async def test_an_ending_job_is_not_cancelled_unless_a_user_said_so(engine: AsyncEngine) -> None:
    stored = await told(engine, ACCEPTED, STARTED, OVERDUE)

    assert (stored["status"], stored["reason"]["code"]) == ("running", "job_deadline")


async def test_a_rejected_submission_keeps_its_problems(engine: AsyncEngine) -> None:
    stored = await told(engine, INVALID)

    assert (stored["status"], stored["reason"]["code"]) == ("rejected", "invalid")
    assert stored["problems"] == [problem.model_dump() for problem in INVALID.problems]
    assert await kinds(engine) == ["job.rejected"]


async def test_a_later_rejection_shows_its_own_problems(engine: AsyncEngine) -> None:
    later = INVALID.model_copy(update={"problems": (), "rejected_at": NOW})

    assert (await told(engine, INVALID, later, INVALID))["problems"] == []


async def test_a_rejected_id_can_be_used_for_a_job_that_is_right(engine: AsyncEngine) -> None:
    stored = await told(engine, INVALID, ACCEPTED)

    assert (stored["status"], stored["reason"], stored["problems"]) == ("queued", None, [])


@pytest.mark.parametrize("rejection", [INVALID, CONFLICT])
async def test_a_rejection_does_not_touch_the_job_that_owns_the_id(engine: AsyncEngine, rejection: JobRejected) -> None:
    before = await told(engine, ACCEPTED, STARTED)

    assert await told(engine, rejection) == before
    assert await kinds(engine) == ["job.accepted", "job.started"]


@pytest.mark.parametrize("rejection", [CONFLICT, INVALID.model_copy(update={"job_id": None})])
async def test_a_rejection_that_is_about_no_job_makes_none(engine: AsyncEngine, rejection: JobRejected) -> None:
    await project(engine, rejection, NOW)

    assert await rows(engine, "SELECT * FROM results.jobs") == []


async def test_a_submission_noted_by_the_api_becomes_the_job(engine: AsyncEngine) -> None:
    early = NOW - timedelta(seconds=5)
    async with writing(engine) as connection:
        await connection.exec_driver_sql(
            "INSERT INTO results.jobs (job_id, created_at, submitted_at, name) VALUES ('job-1', $1, $1, 'bias')",
            (early,),
        )
    assert (await job(engine))["status"] == "submitted"

    stored = await told(engine, ACCEPTED)

    assert (stored["status"], stored["created_at"], stored["submitted_at"]) == ("queued", early, early)


async def test_what_no_database_stores_is_poison(engine: AsyncEngine) -> None:
    with pytest.raises(PoisonError):
        await project(engine, ACCEPTED.model_copy(update={"name": "a\0b"}), NOW)
    with pytest.raises(PoisonError):
        await project(engine, ACCEPTED.model_copy(update={"executions": 2**40}), NOW)

    assert await rows(engine, "SELECT * FROM results.jobs") == []


# --- batches


OPENED = BatchOpened(
    batch=BatchRef(job_id="job-1", lane="all", question_index=0),
    question_id="question-0",
    executions=3,
    opened_at=NOW,
    deadline_at=NOW + timedelta(hours=1),
)


async def open_batch(engine: AsyncEngine, opened: BatchOpened) -> None:
    await ledger.record(engine, [read_news(opened.model_dump_json().encode())], NOW)


async def test_an_opened_batch_has_a_size_and_a_deadline(engine: AsyncEngine) -> None:
    for _ in range(2):
        await open_batch(engine, OPENED)

    stored = await row(engine, "SELECT expected, recorded, opened_at, deadline_at FROM results.batches")
    assert stored == {"expected": 3, "recorded": 0, "opened_at": NOW, "deadline_at": OPENED.deadline_at}
    assert await kinds(engine) == ["batch.opened"]


async def test_an_opened_batch_keeps_its_question_and_events_do_not_repeat_it(engine: AsyncEngine) -> None:
    question = Question(id="question-0", text="Why?", tags=("odd",), metadata={"weight": 2})
    await ledger.record(engine, [read_news(fact.model_dump_json().encode()) for fact in every(plan(models=1))], NOW)
    await open_batch(engine, OPENED.model_copy(update={"question": question}))

    stored = await row(engine, "SELECT question FROM results.batches")
    assert stored["question"] == question.model_dump(mode="json")
    (event,) = await rows(engine, "SELECT data FROM results.events WHERE kind = 'batch.opened'")
    assert event["data"]["question_id"] == "question-0"
    assert "question" not in event["data"]


async def test_the_opening_may_come_after_the_facts(engine: AsyncEngine) -> None:
    facts = [read_news(fact.model_dump_json().encode()) for fact in every(plan(models=1))]
    await ledger.record(engine, facts, NOW)

    await open_batch(engine, OPENED)

    stored = await row(engine, "SELECT recorded, opened_at, completed_at FROM results.batches")
    assert stored == {"recorded": 3, "opened_at": NOW, "completed_at": NOW}
    assert await kinds(engine) == ["batch.completed", "batch.opened"]


# --- the order of events


def event(job_id: str, kind: str) -> Event:
    return Event(job_id, kind, "{}", NOW)


async def test_a_reader_that_goes_on_from_a_number_misses_nothing(engine: AsyncEngine) -> None:
    """The later of two writers cannot commit before the earlier one: its number would hide the earlier event."""

    async def append(kind: str) -> None:
        async with writing(engine) as connection:
            await events.append(connection, [event("job-1", kind)])

    async with writing(engine) as earlier:
        await events.append(earlier, [event("job-1", "first")])
        later = asyncio.create_task(append("second"))
        await blocked(engine, 1)
        assert await kinds(engine) == []
    await later

    stored = await rows(engine, "SELECT number, kind FROM results.events ORDER BY number")
    assert [tuple(each.values()) for each in stored] == [(1, "first"), (2, "second")]


async def test_numbers_count_within_each_job(engine: AsyncEngine) -> None:
    for _ in range(2):
        async with writing(engine) as connection:
            await events.append(connection, [event("b", "1"), event("a", "2"), event("b", "3")])

    stored = await rows(engine, "SELECT job_id, number, kind FROM results.events ORDER BY job_id, number")
    assert [tuple(each.values()) for each in stored] == [
        ("a", 1, "2"), ("a", 2, "2"), ("b", 1, "1"), ("b", 2, "3"), ("b", 3, "1"), ("b", 4, "3"),
    ]  # fmt: skip


async def test_heads_are_locked_in_the_order_of_jobs(engine: AsyncEngine) -> None:
    async def append() -> None:
        async with writing(engine) as connection:
            await events.append(connection, [event("b", "x"), event("a", "x")])

    await append()
    async with writing(engine) as holder:
        await events.append(holder, [event("a", "y")])
        waiting = asyncio.create_task(append())
        await blocked(engine, 1)
        async with writing(engine) as other:  # fails at once if the waiting writer holds the later head already
            await other.exec_driver_sql("SELECT 1 FROM results.event_heads WHERE job_id = 'b' FOR UPDATE NOWAIT")
    await waiting
