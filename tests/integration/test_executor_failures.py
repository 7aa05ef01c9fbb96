"""The matrix of failures: an executor, the memory bus, and a scripted model server behind a real socket."""

import dataclasses
import socket
from collections.abc import AsyncIterator

import pytest

from executor.endpoints.openai import OpenAIEndpoint
from parallax.contracts.messages import ExecutionFinished
from parallax.contracts.outcomes import Attempt, AttemptOutcome, ExecutionStatus
from parallax_cli.mock_endpoint import create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step
from tests.fakes.executor_stage import QUICK, ExecutorStage, executor_stage, task
from tests.fakes.model_server import ModelServer, model_server

OK = Step(text="An answer.")


@pytest.fixture
async def stage() -> AsyncIterator[ExecutorStage]:
    async with executor_stage() as ready:
        yield ready


async def run(
    stage: ExecutorStage,
    *steps: Step,
    script: Script | None = None,
    cold_start_s: float = 0.0,
    deadline_s: float = 600.0,
    **limits: float,
) -> tuple[ExecutionFinished, ModelServer]:
    """The fact of one execution whose calls are answered by steps, and the server that saw them."""
    async with model_server(script or steps[0], *steps[1:]) as server:
        endpoint = OpenAIEndpoint(server.url, stall_timeout_s=0.3)
        async with stage.executor(endpoint, cold_start_s=cold_start_s):
            fact = await stage.fact_of(task(limits=limits, deadline_s=deadline_s))
        await endpoint.close()
        return fact, server


def told(attempt: Attempt) -> tuple[AttemptOutcome, int | None, str | None]:
    return attempt.outcome, attempt.http_status, attempt.error.code if attempt.error else None


@pytest.mark.parametrize("status", [408, 500, 502, 504])
async def test_transient_errors_are_tried_again_within_the_attempts(stage: ExecutorStage, status: int) -> None:
    fact, server = await run(stage, Step(status=status, message="try later"), OK)
    assert fact.status is ExecutionStatus.COMPLETED
    assert [(a.number, a.http_status) for a in fact.attempts] == [(1, status), (2, 200)]
    error = fact.attempts[0].error
    assert error is not None
    assert (error.code, error.retryable) == (f"http_{status}", True)
    assert "try later" in error.message
    assert len(server.calls) == 2


async def test_transient_errors_without_end_fail_after_the_last_attempt(stage: ExecutorStage) -> None:
    fact, server = await run(stage, Step(status=500), max_attempts=3)
    assert fact.status is ExecutionStatus.FAILED
    assert fact.error is not None
    assert fact.error.code == "http_500"
    assert len(fact.attempts) == len(server.calls) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_permanent_errors_fail_at_once_with_the_provider_s_message(stage: ExecutorStage, status: int) -> None:
    fact, server = await run(stage, Step(status=status, message="the model's own reason"))
    assert fact.status is ExecutionStatus.FAILED
    assert fact.error is not None
    assert (fact.error.code, fact.error.retryable) == (f"http_{status}", False)
    assert "the model's own reason" in fact.error.message
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", [425, 429, 503])
async def test_refused_calls_use_up_no_attempt(stage: ExecutorStage, status: int) -> None:
    """Failure seen: 64 calls at once overwhelmed three cold endpoints."""
    refused = Step(status=status)
    fact, server = await run(stage, refused, refused, refused, refused, OK, max_attempts=1)
    assert fact.status is ExecutionStatus.COMPLETED
    assert [a.http_status for a in fact.attempts] == [status] * 4 + [200]
    assert len(server.calls) == 5


async def test_a_refusing_endpoint_is_probed_by_one_call_not_by_all(stage: ExecutorStage) -> None:
    script = Script(cold_start_s=0.4, cold_start="refuse")
    async with model_server(script) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with stage.executor(endpoint, dataclasses.replace(QUICK, budget=64, breaker_base_s=0.1)):
            await stage.submit(*(task(f"q{n}") for n in range(64)))
            facts = await stage.until_facts(64)
            refusals = [call for call in server.calls if call.status == 503]
        await endpoint.close()
    assert {fact.status for fact in facts} == {ExecutionStatus.COMPLETED}
    assert len(refusals) < 64 + 20, "the first burst, and then single probes"


async def test_retry_after_is_honoured(stage: ExecutorStage) -> None:
    fact, server = await run(stage, Step(status=429, retry_after="1"), OK)
    assert fact.status is ExecutionStatus.COMPLETED
    first, second = server.calls
    assert second.received_at - first.received_at >= 0.95


async def test_a_303_is_a_call_that_still_runs(stage: ExecutorStage) -> None:
    """Failure seen: HTTP 303 read as an error."""
    fact, server = await run(stage, Step(text="An answer.", pending=3), max_attempts=1)
    assert fact.status is ExecutionStatus.COMPLETED
    assert fact.output is not None
    assert fact.output.text == "An answer."
    assert len(server.calls) == len(fact.attempts) == 1


async def test_a_redirect_to_another_server_is_not_followed(stage: ExecutorStage) -> None:
    fact, _ = await run(stage, Step(redirect_to="http://192.0.2.1/steal"))
    assert fact.status is ExecutionStatus.FAILED
    assert fact.error is not None
    assert fact.error.code == "foreign_redirect"


async def test_the_classic_check_of_an_attempt_timeout(stage: ExecutorStage) -> None:
    fact, server = await run(stage, Step(delay_s=30), attempt_timeout_s=1.0, max_attempts=2)
    await server.until(lambda calls: all(call.aborted_at is not None for call in calls))
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert (fact.error.error_class, fact.error.code) == ("timeout", "attempt_timeout_s")
    assert fact.error.message.startswith("attempt_timeout_s of 1 s struck after 1.")
    assert [a.outcome for a in fact.attempts] == [AttemptOutcome.TIMED_OUT] * 2
    assert all(1.0 <= a.duration_s < 10 for a in fact.attempts)
    assert len(server.calls) == 2


async def test_the_attempt_timeout_also_cuts_an_answer_that_has_begun(stage: ExecutorStage) -> None:
    slow = Step(text="word " * 1000, token_interval_s=0.05)
    fact, server = await run(stage, slow, attempt_timeout_s=0.5, max_attempts=1)
    await server.until(lambda calls: calls[0].aborted_at is not None)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.provider_id == "chatcmpl-mock-1"


async def test_a_late_first_byte_is_cut_by_its_own_limit(stage: ExecutorStage) -> None:
    fact, _ = await run(stage, Step(delay_s=30), first_byte_timeout_s=0.2, max_attempts=1)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert fact.error.code == "first_byte_timeout_s"


async def test_an_answer_that_begins_in_time_may_take_longer_than_the_first_byte(stage: ExecutorStage) -> None:
    slow = Step(text="one two three four five six", token_interval_s=0.2)
    fact, _ = await run(stage, slow, first_byte_timeout_s=0.9, max_attempts=1)
    assert fact.status is ExecutionStatus.COMPLETED


async def test_a_cold_start_does_not_eat_the_attempt_s_time(stage: ExecutorStage) -> None:
    script = Script(default=OK, cold_start_s=1.0, cold_start="hold")
    fact, _ = await run(stage, script=script, cold_start_s=20.0, attempt_timeout_s=0.5, max_attempts=1)
    assert fact.status is ExecutionStatus.COMPLETED


async def test_without_a_cold_start_budget_the_same_call_times_out(stage: ExecutorStage) -> None:
    script = Script(default=OK, cold_start_s=30.0, cold_start="hold")
    fact, _ = await run(stage, script=script, attempt_timeout_s=0.3, max_attempts=1)
    assert fact.status is ExecutionStatus.TIMED_OUT


async def test_the_batch_deadline_cuts_a_running_call(stage: ExecutorStage) -> None:
    fact, server = await run(stage, Step(delay_s=30), deadline_s=0.5)
    await server.until(lambda calls: calls[0].aborted_at is not None)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert (fact.error.error_class, fact.error.code) == ("deadline", "batch_deadline_s")
    assert len(fact.attempts) == 1


async def test_a_stalled_stream_is_tried_again(stage: ExecutorStage) -> None:
    fact, server = await run(stage, Step(text="one two three", stall_after=1), OK)
    assert fact.status is ExecutionStatus.COMPLETED
    assert told(fact.attempts[0]) == (AttemptOutcome.TIMED_OUT, 200, "stall_timeout_s")
    await server.until(lambda calls: calls[0].aborted_at is not None)


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (Step(text="one two three", drop_after=2), "connection_broken"),
        (Step(text="one two three", garbage_after=2), "malformed_answer"),
        (Step(text="one two three", fail_after=2), "http_500"),
    ],
    ids=["connection lost", "garbage", "error in the stream"],
)
async def test_an_answer_that_breaks_off_is_tried_again(stage: ExecutorStage, broken: Step, code: str) -> None:
    fact, _ = await run(stage, broken, OK)
    assert fact.status is ExecutionStatus.COMPLETED
    assert told(fact.attempts[0])[2] == code
    assert fact.output is not None
    assert fact.output.text == "An answer.", "nothing of the broken answer is left"


async def test_an_answer_in_one_document_is_understood(stage: ExecutorStage) -> None:
    fact, _ = await run(stage, Step(text="An answer.", whole=True, region="eu-west1"))
    assert fact.output is not None
    assert fact.output.text == "An answer."
    assert fact.receipt is not None
    assert fact.receipt.region_observed == "eu-west1"


async def test_an_empty_text_is_completed(stage: ExecutorStage) -> None:
    """Failure seen: success at the provider, "failed" in the portal because the text was empty."""
    fact, _ = await run(stage, Step(text="", finish_reason="content_filter"))
    assert (fact.status, fact.finish_reason) == (ExecutionStatus.COMPLETED, "content_filter")


async def test_a_refusal_is_data(stage: ExecutorStage) -> None:
    fact, _ = await run(stage, Step(text="", refusal="No."))
    assert fact.status is ExecutionStatus.COMPLETED
    assert fact.output is not None
    assert fact.output.refusal == "No."


async def test_a_region_whose_endpoint_is_down_waits_and_then_completes(stage: ExecutorStage) -> None:
    """Failure seen: health check failed on a wrong URL, so everything failed in 10 ms."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    endpoint = OpenAIEndpoint(f"http://127.0.0.1:{port}/v1")
    async with stage.executor(endpoint):
        await stage.submit(task(limits={"max_attempts": 1}))
        await stage.until(lambda: any(beat.endpoint_state == "unavailable" for beat in stage.heartbeats))
        assert stage.facts == []
        assert "ConnectionRefusedError" in (stage.heartbeats[-1].last_error or "")
        async with serving(create_mock(Script(default=OK)), port=port):
            [fact] = await stage.until_facts(1)
            await stage.until(lambda: stage.heartbeats[-1].endpoint_state != "unavailable")
    await endpoint.close()
    assert fact.status is ExecutionStatus.COMPLETED
    assert told(fact.attempts[0]) == (AttemptOutcome.ERROR, None, "connection_refused")


async def test_an_endpoint_that_stays_down_ends_with_the_deadline_and_its_last_word(stage: ExecutorStage) -> None:
    fact, _ = await run(stage, Step(status=503, message="out of capacity"), deadline_s=0.6)
    assert fact.status is ExecutionStatus.TIMED_OUT
    assert fact.error is not None
    assert (fact.error.error_class, fact.error.code) == ("deadline", "batch_deadline_s")
    assert "out of capacity" in fact.error.message


async def test_every_answer_comes_from_its_own_call(stage: ExecutorStage) -> None:
    """Failure seen: one call, its answer copied to 18 rows."""
    async with model_server(Script(rules=(Rule(steps=(Step(token_interval_s=0.001),)),))) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with stage.executor(endpoint):
            await stage.submit(*(task("q1", sample=sample, text="The same for all") for sample in range(18)))
            facts = await stage.until_facts(18)
        await endpoint.close()
    assert len({fact.provider_id for fact in facts}) == len(server.calls) == 18
    assert {call.request_id for call in server.calls} == {f"{fact.execution_id}/1" for fact in facts}


async def test_a_cancel_closes_the_stream_of_every_call_at_once(stage: ExecutorStage) -> None:
    async with model_server(Step(text="word " * 1000, token_interval_s=0.5)) as server:
        endpoint = OpenAIEndpoint(server.url)
        async with stage.executor(endpoint, dataclasses.replace(QUICK, budget=50)):
            await stage.submit(*(task(f"q{n}") for n in range(50)))
            await server.until(lambda calls: sum(call.first_byte_at is not None for call in calls) == 50)
            await stage.cancel("job-1")
            await server.until(lambda calls: all(call.aborted_at is not None for call in calls))
            facts = await stage.until_facts(50)
        await endpoint.close()
    assert {fact.status for fact in facts} == {ExecutionStatus.CANCELLED}
