"""The Modal endpoint with the real SDK against a control plane on loopback."""

import asyncio
import time
from typing import Any

import pytest
from grpclib import Status
from modal_proto import api_pb2

from executor.endpoints.modal import create_modal_endpoint
from executor.endpoints.port import EndpointError
from modal_deployment.engine import GenerationFailedError, RequestRefusedError
from parallax.contracts.job import Parameters
from parallax.errors import InvalidInputError
from tests.fakes.engines import ScriptedEngine
from tests.fakes.modal_control_plane import ContainerLostError, ContainerTimeoutError
from tests.harness.modal_stage import (
    APP,
    CLASS,
    REGION_OBSERVED,
    Stage,
    endpoint_for,
    request,
    serving_engine,
    stage,
    trace,
)


async def failure_of(on: Stage) -> EndpointError:
    """How a call fails."""
    with pytest.raises(EndpointError) as caught:
        await on.endpoint.call(request(), trace())
    return caught.value


async def test_an_answer_carries_all_that_the_provider_knows() -> None:
    async with stage() as on:
        seen = trace()
        answer = await on.endpoint.call(request(), seen)
        call = on.plane.calls[0]
    assert (answer.text, answer.finish_reason, answer.model_reported) == ("Forty-two", "stop", "org/tiny")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 2)
    assert answer.versions == {"scripted": "1", "weights": "abc123"}
    assert answer.provider_timings["queue_s"] == 0.125
    assert answer.provider_timings["container"] == "ta-1"
    assert (seen.provider_call_id, seen.region_observed) == (call.call_id, REGION_OBSERVED)
    assert call.cancels == []


async def test_the_class_gets_the_request_as_plain_values() -> None:
    async with stage() as on:
        parameters = Parameters(temperature=0.5, seed=3, stop=("\n",), max_tokens=9)
        asked = request("Why?", parameters=parameters, revision="abc123", attempt=2)
        await on.endpoint.call(asked, trace())
        document = on.plane.calls[0].request
    assert document == {
        "version": 1,
        "request_id": f"{asked.execution_id}/2",
        "model": "tiny",
        "upstream": "org/tiny",
        "revision": "abc123",
        "messages": [{"role": "user", "content": "Why?"}],
        "parameters": {"temperature": 0.5, "seed": 3, "stop": ["\n"], "max_tokens": 9},
    }


async def test_a_long_prompt_goes_through_blob_storage() -> None:
    text = "why " * 50_000
    async with stage() as on:
        await on.endpoint.call(request(text), trace())
        [call] = on.plane.calls
    assert call.uploaded
    assert call.request["messages"][0]["content"] == text


async def test_many_calls_share_one_look_up() -> None:
    async with stage() as on:
        answers = await asyncio.gather(*(on.endpoint.call(request(), trace()) for _ in range(30)))
        assert on.plane.lookups == 1
    assert {answer.text for answer in answers} == {"Forty-two"}


async def test_cancelling_reaches_the_engine_and_leaves_the_neighbours_and_the_container_alone() -> None:
    async with stage(ScriptedEngine(gate=asyncio.Event())) as on:
        seen = trace()
        others = [asyncio.create_task(on.endpoint.call(request(), trace())) for _ in range(2)]
        cancelled = asyncio.create_task(on.endpoint.call(request(), seen))
        await on.until(lambda calls: [call.polls for call in calls] == [1, 1, 1])
        began = time.monotonic()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        call = next(call for call in on.plane.calls if call.call_id == seen.provider_call_id)
        assert call.cancels[0] - began < 2.0
        assert call.ended
        assert not call.terminated_containers
        assert on.engine.aborted == [call.request["request_id"]]
        assert on.engine.gate is not None
        on.engine.gate.set()
        assert [answer.text for answer in await asyncio.gather(*others)] == ["Forty-two", "Forty-two"]
        assert [len(other.cancels) for other in on.plane.calls if other is not call] == [0, 0]


async def test_a_call_cancelled_while_it_is_being_started_is_cancelled_as_soon_as_it_has_an_id() -> None:
    async with stage(ScriptedEngine(gate=asyncio.Event())) as on:
        await asyncio.gather(asyncio.create_task(_warm(on)))
        on.plane.hold["FunctionMap"] = asyncio.Event()
        seen = trace()
        call = asyncio.create_task(on.endpoint.call(request(), seen))
        await on.plane.holding.acquire()
        call.cancel()
        await asyncio.sleep(0.05)
        assert not call.done()
        on.plane.hold.pop("FunctionMap").set()
        with pytest.raises(asyncio.CancelledError):
            await call
        last = on.plane.calls[-1]
        assert seen.provider_call_id == last.call_id
        assert last.ended
        assert len(last.cancels) == 1


async def _warm(on: Stage) -> None:
    """Look the class up, so that a test meets nothing but the call itself."""
    assert on.engine.gate is not None
    on.engine.gate.set()
    await on.endpoint.call(request(), trace())
    on.engine.gate.clear()


async def test_an_answer_lost_on_the_way_does_not_start_a_second_call() -> None:
    async with stage() as on:
        on.plane.faults.lost_answers["FunctionMap"] = 1
        await on.endpoint.call(request(), trace())
        assert len(on.plane.calls) == 1


async def test_a_running_call_is_followed_through_an_outage_of_the_control_plane() -> None:
    async with stage(ScriptedEngine(gate=asyncio.Event())) as on:
        on.plane.faults.fail("FunctionGetOutputs", Status.UNAVAILABLE, times=6)  # more than the SDK itself retries
        asked = asyncio.create_task(on.endpoint.call(request(), trace()))
        await on.engine.begun.acquire()
        assert on.engine.gate is not None
        on.engine.gate.set()
        assert (await asked).text == "Forty-two"
        assert len(on.plane.calls) == 1


async def test_a_throttled_call_waits_at_the_gate_for_as_long_as_modal_says() -> None:
    async with stage() as on:
        asks = [api_pb2.RPCRetryPolicy(retry_after_secs=7.5)]
        on.plane.faults.fail("FunctionMap", Status.RESOURCE_EXHAUSTED, details=asks)
        error = await failure_of(on)
        assert (error.not_ready, error.retry_after_s, error.info.error_class) == (True, 7.5, "rate_limited")
        assert (await on.endpoint.call(request(), trace())).text == "Forty-two"


async def test_a_control_plane_that_is_away_closes_the_gate_and_is_found_again() -> None:
    async with stage() as on:
        on.plane.faults.fail("FunctionGet", Status.UNAVAILABLE, times=4)
        on.plane.faults.fail("ClassGet", Status.UNAVAILABLE, times=4)
        error = await failure_of(on)
        assert (error.not_ready, error.info.error_class, error.info.retryable) == (True, "unavailable", True)
        on.plane.faults.clear("FunctionGet")
        on.plane.faults.clear("ClassGet")
        assert (await on.endpoint.call(request(), trace())).text == "Forty-two"


async def test_a_look_up_has_a_deadline_where_nobody_answers() -> None:
    endpoint = endpoint_for("http://127.0.0.1:9", lookup_timeout_s=0.5)  # the port of "discard": nobody listens
    began = time.monotonic()
    with pytest.raises(EndpointError) as caught:
        await endpoint.call(request(), trace())
    assert (caught.value.not_ready, caught.value.info.code) == (True, "lookup_timeout")
    assert time.monotonic() - began < 10.0
    await endpoint.close()


async def test_an_app_that_is_not_deployed_is_found_once_it_is() -> None:
    async with stage() as on:
        deployed = on.plane.deployed.pop((APP, CLASS))
        error = await failure_of(on)
        assert (error.info.error_class, error.info.retryable, error.not_ready) == ("not_found", False, False)
        assert APP in error.info.message
        on.plane.deployed[(APP, CLASS)] = deployed
        assert (await on.endpoint.call(request(), trace())).text == "Forty-two"


async def test_a_wrong_token_is_an_authentication_error() -> None:
    async with stage() as on:
        endpoint = endpoint_for(on.url, secret="as-wrong")
        with pytest.raises(EndpointError) as caught:
            await endpoint.call(request(), trace())
        assert (caught.value.info.error_class, caught.value.info.retryable) == ("authentication", False)
        assert "as-wrong" not in str(caught.value)
        await endpoint.close()


@pytest.mark.parametrize(
    ("raised", "error_class", "code", "retryable"),
    [
        (ContainerTimeoutError("input took over 1200 s"), "timeout", "function_timeout", True),
        (ContainerLostError("worker died"), "server", "provider_error", True),
        (ZeroDivisionError("division by zero"), "internal", "remote_exception", False),
        (TimeoutError("not what it seems"), "internal", "remote_exception", False),
        (asyncio.CancelledError(), "server", "remote_failure", True),
    ],
)
async def test_what_happens_to_a_call_is_classed_by_what_can_be_done_about_it(
    raised: BaseException, error_class: str, code: str, retryable: bool
) -> None:
    async def handler(_: str, __: Any) -> object:
        raise raised

    async with stage() as on:
        on.plane.deploy(APP, CLASS, handler)
        error = await failure_of(on)
    assert (error.info.error_class, error.info.code, error.info.retryable) == (error_class, code, retryable)
    assert not error.not_ready


@pytest.mark.parametrize(
    ("raised", "code", "retryable"),
    [
        (RequestRefusedError("too_long", "600 tokens do not fit"), "too_long", False),
        (GenerationFailedError("out of blocks"), "generation_failed", True),
    ],
)
async def test_errors_that_the_container_answers_with(raised: Exception, code: str, retryable: bool) -> None:
    async with stage(ScriptedEngine(error=raised)) as on:
        error = await failure_of(on)
    assert (error.info.code, error.info.message, error.info.retryable) == (code, str(raised), retryable)


async def test_weights_other_than_the_catalogs_do_not_answer() -> None:
    async with stage() as on:
        with pytest.raises(EndpointError) as caught:
            await on.endpoint.call(request(revision="other"), trace())
    assert caught.value.info.code == "wrong_revision"


@pytest.mark.parametrize("answer", ["text", None, {}, {"text": 1}, {"text": "x" * 2_000_001}, {"error": "bad"}])
async def test_an_answer_that_is_none_is_a_protocol_error(answer: object) -> None:
    async def handler(_: str, __: Any) -> object:
        return answer

    async with stage() as on:
        on.plane.deploy(APP, CLASS, handler)
        error = await failure_of(on)
    assert (error.info.error_class, error.info.retryable) == ("protocol", True)


async def test_closing_the_endpoint_cancels_what_still_runs() -> None:
    async with stage(ScriptedEngine(gate=asyncio.Event())) as on:
        asked = asyncio.create_task(on.endpoint.call(request(), trace()))
        await on.until(lambda calls: [call.polls for call in calls] == [1])
        await on.endpoint.close()
        assert len(on.plane.calls[0].cancels) >= 1
        await asyncio.gather(asked, return_exceptions=True)


@pytest.mark.parametrize("url", ["modal://", "modal://app", "modal://app/Class/method", "modal://app/Class?model=x"])
def test_a_url_that_names_no_class_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="modal://APP/CLASS"):
        create_modal_endpoint(url, {"MODAL_TOKEN_ID": "a", "MODAL_TOKEN_SECRET": "b"})


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        ({}, "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET not set"),
        ({"MODAL_TOKEN_ID": "ak-1"}, "MODAL_TOKEN_SECRET not set"),
    ],
)
def test_missing_credentials_are_a_clear_error_at_the_start(env: dict[str, str], missing: str) -> None:
    with pytest.raises(InvalidInputError, match=missing):
        create_modal_endpoint("modal://parallax-us/Inference", env)


async def test_a_class_is_called_with_the_value_of_its_parameter() -> None:
    async with stage() as on:
        on.plane.deploy(APP, CLASS, serving_engine(on.engine))
        await on.endpoint.call(request(), trace())
        assert on.plane.calls[0].model == "tiny"
