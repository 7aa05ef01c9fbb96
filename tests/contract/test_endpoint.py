"""What every endpoint promises an executor, whoever serves the model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import pytest

from executor.endpoints.openai import OpenAIEndpoint
from executor.endpoints.port import CallTrace, Endpoint, EndpointError, ModelRequest
from parallax.contracts.job import Parameters
from parallax.contracts.outcomes import ChatMessage
from parallax_cli.mock_script import Step
from tests.fakes.endpoint import FakeEndpoint
from tests.fakes.model_server import model_server
from tests.harness import modal_stage

SLOW = Step(text="word " * 1000, token_interval_s=0.02)
"""An answer that takes twenty seconds."""


@dataclass(frozen=True, slots=True)
class Play:
    """An endpoint, and what its provider sees."""

    endpoint: Endpoint
    until_received: Callable[[int], Awaitable[None]]
    until_aborted: Callable[[int], Awaitable[None]]


class Stage(Protocol):
    """A provider that follows steps: the first step answers a prompt's first call, and so on."""

    def __call__(self, *steps: Step) -> AbstractAsyncContextManager[Play]: ...


@asynccontextmanager
async def _openai(*steps: Step) -> AsyncIterator[Play]:
    async with model_server(*steps) as server:
        endpoint = OpenAIEndpoint(server.url, stall_timeout_s=0.5)
        try:
            yield Play(
                endpoint,
                lambda count: server.until(lambda calls: len(calls) >= count),
                lambda count: server.until(lambda calls: sum(c.aborted_at is not None for c in calls) >= count),
            )
        finally:
            await endpoint.close()


@asynccontextmanager
async def _fake(*steps: Step) -> AsyncIterator[Play]:
    endpoint = FakeEndpoint(steps)

    async def until_aborted(count: int) -> None:
        async with asyncio.timeout(30):
            while sum(call.aborted for call in endpoint.calls) < count:
                endpoint.changed.clear()
                await endpoint.changed.wait()

    yield Play(endpoint, endpoint.until_calls, until_aborted)


@asynccontextmanager
async def _modal(*steps: Step) -> AsyncIterator[Play]:
    async with modal_stage.stage(steps=steps) as on:
        yield Play(
            on.endpoint,
            lambda count: on.until(lambda calls: len(calls) >= count),
            lambda count: on.until(lambda calls: sum(call.ended and bool(call.cancels) for call in calls) >= count),
        )


@pytest.fixture(params=[_fake, _openai, _modal], ids=["fake", "openai", "modal"])
def stage(request: pytest.FixtureRequest) -> Stage:
    chosen: Stage = request.param
    return chosen


def request_for(prompt: str = "Why is the sky blue?") -> ModelRequest:
    return ModelRequest(
        execution_id=uuid4(),
        attempt=1,
        model="mock",
        upstream="upstream/mock",
        revision=None,
        messages=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=prompt)),
        parameters=Parameters(temperature=0, max_tokens=16, seed=7),
    )


class Trace(CallTrace):
    """A trace whose first byte can be awaited."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        super().__init__(on_first_byte=self.begun.set)


async def test_an_answer_carries_text_reason_usage_and_the_provider_s_name_of_the_call(stage: Stage) -> None:
    async with stage(Step(text="Because of Rayleigh scattering.")) as play:
        trace = Trace()
        answer = await play.endpoint.call(request_for(), trace)
    assert answer.text == "Because of Rayleigh scattering."
    assert answer.refusal is None
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.model_reported == "upstream/mock"
    assert trace.provider_call_id
    assert trace.begun.is_set() is play.endpoint.reports_first_byte


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter"])
async def test_an_empty_answer_is_an_answer(stage: Stage, finish_reason: str) -> None:
    async with stage(Step(text="", finish_reason=finish_reason)) as play:
        answer = await play.endpoint.call(request_for(), Trace())
    assert answer.text == ""
    assert answer.finish_reason == finish_reason


async def test_a_refusal_is_data(stage: Stage) -> None:
    async with stage(Step(text="", refusal="I would rather not.")) as play:
        answer = await play.endpoint.call(request_for(), Trace())
    assert answer.refusal == "I would rather not."


async def test_text_arrives_as_it_was_sent_even_what_no_database_stores(stage: Stage) -> None:
    text = "a\x00b \ud800c \U0001f98a <script> \x1b[31m"
    async with stage(Step(text=text)) as play:
        answer = await play.endpoint.call(request_for(), Trace())
    assert answer.text == text


async def test_a_cancelled_call_is_aborted_at_the_provider(stage: Stage) -> None:
    async with stage(SLOW) as play:
        trace = Trace()
        call = asyncio.create_task(play.endpoint.call(request_for(), trace))
        await play.until_received(1)
        if play.endpoint.reports_first_byte:
            await trace.begun.wait()
            assert trace.provider_call_id, "known as soon as the answer begins, for the facts of aborted calls"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await play.until_aborted(1)


async def test_a_call_cancelled_before_its_first_byte_is_aborted_at_the_provider(stage: Stage) -> None:
    async with stage(Step(delay_s=600)) as play:
        call = asyncio.create_task(play.endpoint.call(request_for(), Trace()))
        await play.until_received(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await play.until_aborted(1)


async def test_calls_at_the_same_time_do_not_mix(stage: Stage) -> None:
    async with stage(Step()) as play:
        requests = [request_for(f"question {number}") for number in range(20)]
        traces = [Trace() for _ in requests]
        answers = await asyncio.gather(
            *(play.endpoint.call(request, trace) for request, trace in zip(requests, traces, strict=True))
        )
    assert len(answers) == 20
    assert len({trace.provider_call_id for trace in traces}) == 20


@pytest.mark.parametrize(
    ("status", "error_class", "retryable", "not_ready"),
    [
        (400, "rejected", False, False),
        (401, "authentication", False, False),
        (403, "authentication", False, False),
        (404, "not_found", False, False),
        (422, "rejected", False, False),
        (408, "timeout", True, False),
        (500, "server", True, False),
        (502, "server", True, False),
        (504, "server", True, False),
        (425, "unavailable", True, True),
        (429, "rate_limited", True, True),
        (503, "unavailable", True, True),
    ],
)
async def test_each_failure_says_what_to_do_about_it(
    stage: Stage, status: int, error_class: str, *, retryable: bool, not_ready: bool
) -> None:
    async with stage(Step(status=status, message="the provider's own words")) as play:
        with pytest.raises(EndpointError) as caught:
            await play.endpoint.call(request_for(), Trace())
    error = caught.value
    assert (error.info.error_class, error.info.retryable, error.not_ready) == (error_class, retryable, not_ready)
    assert "the provider's own words" in error.info.message


async def test_the_provider_s_wish_to_wait_is_passed_on(stage: Stage) -> None:
    async with stage(Step(status=429, retry_after="17")) as play:
        with pytest.raises(EndpointError) as caught:
            await play.endpoint.call(request_for(), Trace())
    assert caught.value.retry_after_s == 17


async def test_a_connection_lost_in_the_middle_is_worth_another_attempt(stage: Stage) -> None:
    async with stage(Step(text="one two three", drop_after=1), Step()) as play:
        with pytest.raises(EndpointError) as caught:
            await play.endpoint.call(request_for(), Trace())
        # A call at Modal does not live in a connection: what can be lost there is its container.
        assert caught.value.info.error_class in {"connection", "server"}
        assert caught.value.info.retryable
        assert not caught.value.not_ready
        await play.endpoint.call(request_for(), Trace())


async def test_garbage_is_a_protocol_error_worth_another_attempt(stage: Stage) -> None:
    async with stage(Step(text="one two three", garbage_after=1)) as play:
        with pytest.raises(EndpointError) as caught:
            await play.endpoint.call(request_for(), Trace())
    assert (caught.value.info.error_class, caught.value.info.retryable) == ("protocol", True)
