"""A model that is rate-limited, down or failing must not keep the region's other models from being called."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from executor.settings import waiting_prefetch
from parallax.bus.memory import MemoryBus
from parallax.bus.port import Delivery
from parallax.contracts.messages import ExecutionFinished, ExecutionTask, InspectionFence, WaitingTask
from parallax.contracts.outcomes import ExecutionStatus
from parallax.contracts.routing import DEAD_EXECUTIONS, Queue, executions, waiting
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.executor_stage import QUICK, ExecutorStage, FlakyBus, executor_stage, task

THROTTLED = "throttled"
WAITING = waiting("us", THROTTLED)
MODELS = ("mock", THROTTLED)
TOO_MANY = Step(status=429, message="slow down")
WITHIN_S = 10.0
"""A generous bound on a loaded machine; without room for the healthy model its executions wait for minutes."""


@pytest.fixture
async def stage() -> AsyncIterator[ExecutorStage]:
    async with executor_stage() as ready:
        yield ready


def throttled(count: int, **of_each: float) -> list[ExecutionTask]:
    return [task(f"t{n}", model=THROTTLED, job="job-throttled", limits=dict(of_each)) for n in range(count)]


def healthy(count: int) -> list[ExecutionTask]:
    return [task(f"h{n}", job="job-healthy") for n in range(count)]


def facts_of(stage: ExecutorStage, job: str) -> list[ExecutionFinished]:
    return [fact for fact in stage.facts if fact.batch.job_id == job]


async def completed(stage: ExecutorStage, tasks: Sequence[ExecutionTask]) -> float:
    """Submit tasks and wait until each is completed; the seconds that this took."""
    began = time.monotonic()
    job = tasks[0].batch.job_id
    await stage.submit(*tasks)
    await stage.until(lambda: len(facts_of(stage, job)) == len(tasks))
    assert {fact.status for fact in facts_of(stage, job)} == {ExecutionStatus.COMPLETED}
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("step", "dead"),
    [
        (TOO_MANY, False),
        (Step(status=503, retry_after="600"), False),
        (Step(), True),
        (Step(status=500), False),
        (Step(status=500, retry_after="100"), False),
    ],
    ids=["429 for ever", "503 with Retry-After", "connection refused", "500 for ever", "500 with Retry-After"],
)
async def test_a_healthy_model_is_called_at_once_however_many_executions_of_another_one_wait(
    stage: ExecutorStage, step: Step, *, dead: bool
) -> None:
    endpoint = FakeEndpoint(by_model={THROTTLED: step}, dead={THROTTLED} if dead else set())
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*throttled(60))
        await endpoint.until_calls(1)
        assert await completed(stage, healthy(40)) < WITHIN_S
        if step.status != 500:
            assert facts_of(stage, "job-throttled") == [], "its executions wait, none has failed"
        await stage.cancel("job-throttled")
    assert endpoint.most_at_once <= QUICK.budget


async def test_a_model_whose_calls_hang_leaves_most_slots_to_the_others(stage: ExecutorStage) -> None:
    """Once the first calls have timed out: what hangs looks like a long answer until then."""
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(delay_s=3600)})
    settings = dataclasses.replace(QUICK, budget=8, grace_s=0.0)
    async with stage.executor(endpoint, settings, also=[THROTTLED]):
        await stage.submit(*throttled(60, attempt_timeout_s=1.0, max_attempts=10))
        await stage.until(lambda: any(beat.endpoint_state == "throttled" for beat in stage.heartbeats))
        assert await completed(stage, healthy(40)) < WITHIN_S


async def test_a_long_wait_for_the_next_attempt_is_spent_in_the_waiting_queue(stage: ExecutorStage) -> None:
    """And whoever takes it from there keeps the moment that the endpoint asked for."""
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=500, retry_after="100")})
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*throttled(QUICK.budget))
        await endpoint.until_calls(QUICK.budget)
        assert await completed(stage, healthy(10)) < WITHIN_S
        assert len(endpoint.calls) == QUICK.budget + 10
        await stage.cancel("job-throttled")


async def test_a_moved_task_is_not_called_before_its_time(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    async with stage.executor(endpoint, also=[THROTTLED]):
        moved = WaitingTask.model_validate(dict(throttled(1)[0]))
        not_before = datetime.now(UTC) + timedelta(seconds=0.5)
        await stage.submit(moved.model_copy(update={"not_before": not_before}))
        [fact] = await stage.until_facts(1)
    assert fact.started_at is not None
    assert fact.started_at >= not_before - timedelta(seconds=0.05), "clocks of two kinds differ by a little"


async def test_waiting_executions_run_when_their_model_recovers(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint(by_model={THROTTLED: TOO_MANY})
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*throttled(60))
        await completed(stage, healthy(10))
        endpoint.by_model[THROTTLED] = Step(text="at last")
        await stage.until(lambda: len(facts_of(stage, "job-throttled")) == 60)
        assert await stage.settled(models=MODELS)
    assert {fact.status for fact in facts_of(stage, "job-throttled")} == {ExecutionStatus.COMPLETED}
    refused = [fact for fact in facts_of(stage, "job-throttled") if fact.attempts[0].http_status == 429]
    assert refused, "attempts made before a task was moved travel with it"
    assert endpoint.most_at_once <= QUICK.budget


async def test_a_waiting_execution_runs_on_whichever_executor_its_model_answers(stage: ExecutorStage) -> None:
    """The first executor moves the task; the second one finds it in the waiting queue."""
    refusing = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    answering = FakeEndpoint()
    tasks = throttled(waiting_prefetch(QUICK.budget) + 20)
    async with stage.executor(refusing, also=[THROTTLED]):
        await stage.submit(*tasks)
        await stage.until(lambda: stage.heartbeats[-1].endpoint_state == "throttled" if stage.heartbeats else False)
        second = dataclasses.replace(QUICK, executor_id="executor-2")
        async with stage.executor(answering, second, also=[THROTTLED]):
            await stage.until(lambda: len(facts_of(stage, "job-throttled")) >= 20)
        assert len(refusing.calls) < 10


async def test_a_cancel_ends_executions_that_wait_and_calls_none_later(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*throttled(60))
        await endpoint.until_calls(1)
        await stage.until(lambda: len(stage.heartbeats) > 2)
        calls = len(endpoint.calls)
        await stage.cancel("job-throttled")
        await _until_empty(stage, WAITING)
        await stage.held()
        assert await stage.settled(models=MODELS)
        assert len(endpoint.calls) == calls
    assert {fact.status for fact in facts_of(stage, "job-throttled")} == {ExecutionStatus.CANCELLED}


async def test_an_executor_that_leaves_hands_its_waiting_executions_back(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    tasks = throttled(30)
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*tasks)
        await endpoint.until_calls(1)
        await stage.until(lambda: len(stage.heartbeats) > 2)
    left = await _everything_in(stage, len(tasks))
    assert sorted(left) == sorted(str(each.execution_id) for each in tasks), "each in exactly one place"


async def test_an_execution_that_waits_to_its_deadline_names_the_cause(stage: ExecutorStage) -> None:
    """Also one that was never called itself, because its model refused the others."""
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, message="quota used up", retry_after="600")})
    async with stage.executor(endpoint, also=[THROTTLED]):
        tasks = [task(f"t{n}", model=THROTTLED, deadline_s=1.5) for n in range(30)]
        await stage.submit(*tasks)
        await stage.until_facts(30)
    assert {fact.status for fact in stage.facts} == {ExecutionStatus.TIMED_OUT}
    assert len([fact for fact in stage.facts if not fact.attempts]) > 20
    for fact in stage.facts:
        assert fact.error is not None
        assert fact.error.code == "batch_deadline_s"
        assert "quota used up" in fact.error.message


async def test_the_region_s_only_model_waits_in_place(stage: ExecutorStage) -> None:
    """There is no other model to make room for, so that nothing is published again."""
    endpoint = FakeEndpoint((Step(status=429, retry_after="600"),))
    async with stage.executor(endpoint):
        await stage.submit(*(task(f"q{n}") for n in range(20)))
        await endpoint.until_calls(1)
        assert len(await stage.held()) == QUICK.budget
        assert not any(held.calling for held in stage.heartbeats[-1].running), "what waits is not in flight"
        assert await stage.bus.depth(executions("us")) == 20 - QUICK.budget
        await stage.cancel("job-1")


async def test_moved_executions_are_listed_for_inspections(stage: ExecutorStage) -> None:
    """They are in a queue, where only the executor that moved them knows of them."""

    def all_listed() -> bool:
        return any(len(each.executions) == len(tasks) for beat in stage.heartbeats for each in beat.fences)

    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    tasks = throttled(waiting_prefetch(QUICK.budget) + 20)
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*tasks)
        await endpoint.until_calls(1)
        batches = tuple(dict.fromkeys(task.batch for task in tasks))
        await stage.bus.publish(InspectionFence(token="round-1", regions=("us",), batches=batches))
        await stage.until(all_listed)
        await stage.cancel("job-throttled")


async def test_an_original_that_comes_again_takes_no_place_from_another_model(stage: ExecutorStage) -> None:
    """Its copy in the waiting queue is held here: kept beside it, originals would fill the region's prefetch."""
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    tasks = throttled(QUICK.budget)
    async with stage.executor(endpoint, also=[THROTTLED]):
        await stage.submit(*tasks)
        await endpoint.until_calls(1)
        await stage.until(lambda: stage.heartbeats[-1].endpoint_state == "throttled" if stage.heartbeats else False)
        assert len(await stage.held()) == QUICK.budget
        await stage.submit(*tasks)
        assert await completed(stage, healthy(10)) < WITHIN_S
        await stage.cancel("job-throttled")


async def test_a_task_whose_publish_is_unknown_is_not_published_again(stage: ExecutorStage) -> None:
    """Two copies would be two calls; none at all is found missing by the dispatcher's inspection."""
    endpoint = FakeEndpoint(by_model={THROTTLED: Step(status=429, retry_after="600")})
    flaky = FlakyBus(MemoryBus(stage.broker), unconfirmed=True)
    async with stage.executor(endpoint, bus=flaky, also=[THROTTLED]):
        await stage.submit(*throttled(QUICK.budget))
        await flaky.until_refused(1)
        assert len(await stage.held()) == QUICK.budget
        flaky.unconfirmed = False
        endpoint.by_model[THROTTLED] = Step()
    left = await _everything_in(stage, QUICK.budget)
    assert len(left) == len(set(left)) == QUICK.budget


async def test_a_dead_letter_of_a_waiting_queue_is_a_dead_execution(stage: ExecutorStage) -> None:
    async with stage.executor(FakeEndpoint(), also=[THROTTLED]):
        await stage.bus.publish_raw(WAITING, b"unreadable")
        async with asyncio.timeout(30):
            while await stage.bus.depth(DEAD_EXECUTIONS) == 0:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)


async def _until_empty(stage: ExecutorStage, queue: Queue) -> None:
    async with asyncio.timeout(30):
        while await stage.bus.depth(queue):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def _everything_in(stage: ExecutorStage, count: int) -> list[str]:
    """The executions in the region's queue and in the waiting queue, at least so many."""
    found: list[str] = []
    done = asyncio.Event()

    def take(delivery: Delivery) -> None:
        found.append(str(ExecutionTask.model_validate_json(delivery.body).execution_id))
        if len(found) >= count:
            done.set()

    for queue in (executions("us"), WAITING):
        await stage.bus.consume(queue, prefetch=1000, handler=take)
    async with asyncio.timeout(30):
        await done.wait()
    return found
