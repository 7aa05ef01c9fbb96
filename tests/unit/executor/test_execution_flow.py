"""An executor on the memory bus with an endpoint that opens no socket."""

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator

import pytest

from executor import app
from executor.facts import prompt_sha256
from parallax.bus.memory import MemoryBus
from parallax.bus.port import Delivery
from parallax.clock import SystemClock
from parallax.contracts.job import Parameters
from parallax.contracts.messages import CancelJob, ExecutionTask, encode
from parallax.contracts.outcomes import AttemptOutcome, ExecutionStatus
from parallax.contracts.routing import DEAD_EXECUTIONS, Queue, executions
from parallax.errors import InvalidInputError
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.executor_stage import QUICK, ExecutorStage, FlakyBus, catalog, executor_stage, task

FOREVER = Step(delay_s=3600)
US_TASKS = executions("us")


@pytest.fixture
async def stage() -> AsyncIterator[ExecutorStage]:
    async with executor_stage() as ready:
        yield ready


async def test_a_completed_execution_has_a_complete_receipt(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(text="Blue.", region="us-east4"),))
    asked = task(parameters=Parameters(seed=7, temperature=0.5), sample=3)
    async with stage.executor(endpoint):
        fact = await stage.fact_of(asked)
    assert fact.status is ExecutionStatus.COMPLETED
    assert fact.observed
    assert fact.output is not None
    assert fact.output.text == "Blue."
    assert (fact.question_id, fact.model_id, fact.region, fact.sample) == ("q1", "mock", "us", 3)
    assert fact.messages == asked.messages
    assert fact.provider_id == "fake-1"
    assert fact.started_at is not None
    receipt = fact.receipt
    assert receipt is not None
    assert receipt.prompt_sha256 == prompt_sha256(asked.messages)
    assert receipt.output_sha256 == hashlib.sha256(b"Blue.").hexdigest()
    assert (receipt.model, receipt.model_requested, receipt.model_revision) == ("mock", "upstream/mock", "r1")
    assert (receipt.region_claimed, receipt.region_observed) == ("us", "us-east4")
    assert (receipt.provider, receipt.executor_id) == ("fake", "executor-1")
    assert receipt.parameters == asked.parameters, "the task holds the seed of its sample already"
    assert endpoint.calls[0].request.parameters == asked.parameters
    assert {"parallax", "python"} <= receipt.versions.keys()
    assert receipt.timings.queue_s is not None
    assert receipt.timings.first_byte_s is not None
    assert receipt.timings.total_s is not None
    assert [attempt.outcome for attempt in fact.attempts] == [AttemptOutcome.OK]
    assert await stage.settled()


async def test_an_empty_answer_is_completed(stage: ExecutorStage) -> None:
    async with stage.executor(FakeEndpoint((Step(text="", finish_reason="stop"),))):
        fact = await stage.fact_of(task())
    assert (fact.status, fact.finish_reason) == (ExecutionStatus.COMPLETED, "stop")


async def test_characters_that_no_database_stores_are_replaced_and_counted(stage: ExecutorStage) -> None:
    async with stage.executor(FakeEndpoint((Step(text="a\x00b\ud800c", refusal="\x00"),))):
        fact = await stage.fact_of(task())
    assert fact.output is not None
    assert (fact.output.text, fact.output.refusal) == ("a\ufffdb\ufffdc", "\ufffd")
    assert fact.receipt is not None
    assert fact.receipt.replaced_characters == 3
    assert fact.receipt.output_sha256 == hashlib.sha256("a\x00b\ud800c".encode("utf-8", "surrogatepass")).hexdigest()


async def test_never_more_calls_than_the_budget(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(delay_s=0.005),))
    async with stage.executor(endpoint):
        await stage.submit(*(task(f"q{n}") for n in range(40)))
        await stage.until_facts(40)
    assert endpoint.most_at_once == QUICK.budget


async def test_a_task_redelivered_while_it_runs_is_called_once_and_acked(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(token_interval_s=0.2, text="one two"),))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
        stage.broker.drop_connections()
        await stage.until_facts(1)
        assert await stage.settled()
    assert len(endpoint.calls) == 1
    assert len(stage.facts) == 1


async def test_a_task_redelivered_after_its_end_is_answered_from_memory(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    async with stage.executor(endpoint):
        await stage.submit(task())
        await stage.until_facts(1)
        await stage.submit(task())
        first, second = await stage.until_facts(2)
    assert first == second
    assert len(endpoint.calls) == 1


async def test_a_task_of_another_region_is_rejected_never_run(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    async with stage.executor(endpoint):
        await stage.bus.publish_raw(executions("us"), encode(task(region="eu")))
        await _until_dead(stage, 1)
    assert endpoint.calls == []


async def test_an_unreadable_task_is_rejected(stage: ExecutorStage) -> None:
    async with stage.executor(FakeEndpoint()):
        await stage.bus.publish_raw(executions("us"), b'{"kind": "execution_task"}')
        await stage.bus.publish_raw(executions("us"), encode(CancelJob(job_id="job-1")))
        await _until_dead(stage, 2)


async def test_an_unknown_model_fails_at_once(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    async with stage.executor(endpoint):
        fact = await stage.fact_of(task(model="european"))
    assert fact.status is ExecutionStatus.FAILED
    assert fact.error is not None
    assert (fact.error.code, fact.error.retryable) == ("unknown_model", False)
    assert "european" in fact.error.message
    assert endpoint.calls == []


async def test_a_task_that_comes_after_its_deadline_is_not_called(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    late = task().model_copy(update={"deadline_at": task().published_at})
    async with stage.executor(endpoint):
        fact = await stage.fact_of(late)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert (fact.error.error_class, fact.error.code) == ("deadline", "batch_deadline_s")
    assert fact.started_at is None
    assert endpoint.calls == []


async def test_cancel_aborts_what_runs_and_publishes_observed_facts(stage: ExecutorStage) -> None:
    """Failure seen: cancelled mid-flight rows lost, because the write used the cancelled context."""
    endpoint = FakeEndpoint((Step(text="word " * 500, token_interval_s=1),))
    async with stage.executor(endpoint):
        await stage.submit(task("q1"), task("q2"), task("q3", job="job-2"))
        await endpoint.until_calls(3)
        await stage.cancel("job-1")
        facts = await stage.until_facts(2)
        assert {fact.question_id for fact in facts} == {"q1", "q2"}
        assert await stage.held() == {task("q3", job="job-2").execution_id}
        await stage.cancel("job-2")
        await stage.until_facts(3)
    for fact in stage.facts:
        assert (fact.status, fact.observed) == (ExecutionStatus.CANCELLED, True)
        assert fact.error is not None
        assert fact.error.error_class == "cancelled"
        assert [attempt.outcome for attempt in fact.attempts] == [AttemptOutcome.CANCELLED]
        assert fact.attempts[0].provider_call_id, "facts of aborted calls name the call"
    assert all(call.aborted for call in endpoint.calls)


async def test_cancel_twice_changes_nothing(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
        await stage.cancel("job-1")
        await stage.cancel("job-1")
        await stage.until_facts(1)
        await stage.held()
    assert len(stage.facts) == 1


async def test_a_job_deadline_ends_executions_as_timed_out(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
        await stage.cancel("job-1", code="job_deadline")
        [fact] = await stage.until_facts(1)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert (fact.error.error_class, fact.error.code) == ("deadline", "job_deadline")


async def test_queued_work_of_a_cancelled_job_never_starts_on_a_later_executor(stage: ExecutorStage) -> None:
    """Failure seen: a redelivered message re-ran a cancelled job."""
    await stage.submit(*(task(f"q{n}") for n in range(1000)))
    await stage.cancel("job-1")
    endpoint = FakeEndpoint()
    async with stage.executor(endpoint):
        fact = await stage.fact_of(task(job="job-2"))
        assert await stage.settled()
    assert fact.status is ExecutionStatus.COMPLETED
    assert len(endpoint.calls) == 1


async def test_a_cancel_reaches_work_redelivered_to_another_executor(stage: ExecutorStage) -> None:
    """Failure seen: cancel reached only calls held in the same process."""
    first, second = FakeEndpoint((FOREVER,)), FakeEndpoint((FOREVER,))
    one = dataclasses.replace(QUICK, budget=1)
    async with stage.executor(first, one), stage.executor(second, dataclasses.replace(one, executor_id="executor-2")):
        await stage.submit(task("q1"), task("q2"))
        await first.until_calls(1)
        await second.until_calls(1)
        await stage.cancel("job-1")
        await stage.until_facts(2)
    assert first.calls[0].aborted
    assert second.calls[0].aborted


async def test_no_call_starts_while_a_cancellation_may_have_been_missed(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    bus = FlakyBus(MemoryBus(stage.broker))
    async with stage.executor(endpoint, bus=bus):
        bus.behind = True
        await stage.submit(task("q1"), task("q2", job="job-2"))
        assert len(await stage.held()) == 2
        await stage.cancel("job-1")
        [cancelled] = await stage.until_facts(1)
        assert endpoint.calls == []
        bus.behind = False
        await stage.until_facts(2)
    assert (cancelled.question_id, cancelled.status) == ("q1", ExecutionStatus.CANCELLED)
    assert [call.request.messages[-1].content for call in endpoint.calls] == ["Question q2?"]


async def test_the_fence_holds_for_work_that_waited_at_the_gate(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(status=503, retry_after="0.5"), Step()))
    bus = FlakyBus(MemoryBus(stage.broker))
    async with stage.executor(endpoint, bus=bus):
        await stage.submit(task())
        await endpoint.until_calls(1)
        bus.behind = True
        await stage.until(lambda: any(b.endpoint_state == "unavailable" for b in stage.heartbeats))
        await asyncio.sleep(0.8)  # the gate opens, and nothing may happen
        assert len(endpoint.calls) == 1
        bus.behind = False
        [fact] = await stage.until_facts(1)
    assert fact.status is ExecutionStatus.COMPLETED


async def test_facts_wait_for_a_bus_that_is_away(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint()
    flaky = FlakyBus(MemoryBus(stage.broker))
    async with stage.executor(endpoint, bus=flaky):
        flaky.away = True
        await stage.submit(task())
        await endpoint.until_calls(1)
        await flaky.until_refused(2)
        assert stage.facts == []
        flaky.away = False
        await stage.until_facts(1)
        assert await stage.settled()
    assert len(endpoint.calls) == 1


async def test_leaving_lets_calls_end_within_the_grace(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(delay_s=0.2),))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
    [fact] = await stage.until_facts(1)
    assert fact.status is ExecutionStatus.COMPLETED
    assert stage.heartbeats[-1].stopping
    assert stage.heartbeats[-1].running == ()


async def test_leaving_aborts_what_outlasts_the_grace_and_hands_it_back(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint, dataclasses.replace(QUICK, grace_s=0.05)):
        await stage.submit(task("q1"), task("q2"))
        await endpoint.until_calls(2)
    assert all(call.aborted for call in endpoint.calls)
    assert stage.facts == []
    returned = [ExecutionTask.model_validate_json(body) for body in await _queued(stage, 2)]
    assert {back.question_id for back in returned} == {"q1", "q2"}
    for back in returned:
        assert [attempt.outcome for attempt in back.prior_attempts] == [AttemptOutcome.CANCELLED]


async def test_a_leaving_executor_starts_no_further_attempt(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((Step(status=500, delay_s=0.3),))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
    [body] = await _queued(stage, 1)
    assert len(endpoint.calls) == 1
    assert [attempt.http_status for attempt in ExecutionTask.model_validate_json(body).prior_attempts] == [500]


async def test_a_handed_back_task_goes_on_where_it_was(stage: ExecutorStage) -> None:
    """Aborted calls use up no attempt; failed ones do, whoever made them."""
    failing = FakeEndpoint((Step(status=500), FOREVER))
    limits = {"max_attempts": 2}
    async with stage.executor(failing, dataclasses.replace(QUICK, grace_s=0.0)):
        await stage.submit(task(limits=limits))
        await failing.until_calls(2)
    async with stage.executor(FakeEndpoint((Step(status=500),))):
        [fact] = await stage.until_facts(1)
    outcomes = [(attempt.number, attempt.outcome) for attempt in fact.attempts]
    assert outcomes == [(1, AttemptOutcome.ERROR), (2, AttemptOutcome.CANCELLED), (3, AttemptOutcome.ERROR)]
    assert fact.status is ExecutionStatus.FAILED


async def test_a_task_that_waits_too_long_is_handed_back(stage: ExecutorStage) -> None:
    """A delivery held for half an hour would cost the channel."""
    refusing = FakeEndpoint((Step(status=503),))
    async with stage.executor(refusing, dataclasses.replace(QUICK, hand_back_after_s=0.2)):
        await stage.submit(task())
        await refusing.until_calls(1)
        [body] = await _queued(stage, 1)
    back = ExecutionTask.model_validate_json(body)
    assert back.prior_attempts
    assert stage.facts == []


async def test_heartbeats_list_what_is_held(stage: ExecutorStage) -> None:
    endpoint = FakeEndpoint((FOREVER,))
    async with stage.executor(endpoint):
        await stage.submit(task())
        await endpoint.until_calls(1)
        assert await stage.held() == {task().execution_id}
        beat = stage.heartbeats[-1]
        assert (beat.region, beat.budget, beat.models, beat.endpoint_state) == ("us", 4, ("mock",), "ready")
        assert not beat.stopping
        await stage.cancel("job-1")


async def test_a_region_outside_the_catalog_is_refused() -> None:
    stage = ExecutorStage()
    settings = dataclasses.replace(QUICK, region="mars")
    with pytest.raises(InvalidInputError, match=r"mars.*us, eu"):
        async with app.running(
            bus=stage.bus, catalog=catalog(), endpoint=FakeEndpoint(), clock=SystemClock(), settings=settings
        ):
            pass


async def test_readiness_follows_the_bus(stage: ExecutorStage) -> None:
    bus = MemoryBus(stage.broker)
    async with stage.executor(FakeEndpoint(), bus=bus) as health:
        assert await health.check() == {"broker": True, "bus": True, "heartbeat": True, "publishing": True}
        await bus.close()
        assert await health.check() == {"broker": False, "bus": False, "heartbeat": True, "publishing": True}


class BrokenClock(SystemClock):
    """Ends every task that waits."""

    async def sleep(self, seconds: float) -> None:
        raise RuntimeError(f"a bug: no sleep of {seconds} s")


async def test_an_executor_whose_tasks_have_died_is_not_ready(stage: ExecutorStage) -> None:
    """Nothing awaits them: facts would never get out, and results would take what runs for missing."""
    endpoint, flaky = FakeEndpoint(), FlakyBus(MemoryBus(stage.broker))
    async with app.running(
        bus=flaky, catalog=catalog(), endpoint=endpoint, clock=BrokenClock(), settings=QUICK
    ) as health:
        flaky.away = True
        await stage.submit(task())
        async with asyncio.timeout(30):
            while any([(await health.check())[name] for name in ("publishing", "heartbeat")]):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)


async def _until_dead(stage: ExecutorStage, count: int) -> None:
    assert len(await _queued(stage, count, DEAD_EXECUTIONS)) == count


async def _queued(stage: ExecutorStage, count: int, queue: Queue = US_TASKS) -> list[bytes]:
    """So many messages of a queue; a running executor competes for the tasks of its region."""
    bodies: list[bytes] = []
    done = asyncio.Event()

    def take(delivery: Delivery) -> None:
        bodies.append(delivery.body)
        if len(bodies) == count:
            done.set()

    consumption = await stage.bus.consume(queue, prefetch=100, handler=take)
    async with asyncio.timeout(30):
        await done.wait()
    await consumption.close()
    return bodies
