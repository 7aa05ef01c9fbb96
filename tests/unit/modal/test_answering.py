"""Requests and answers of a container, over an engine that does as it is told."""

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from modal_deployment.answering import Where, answer, broken
from modal_deployment.engine import EngineBrokenError, GenerationFailedError, RequestRefusedError, Sampling
from modal_deployment.plan import ModelPlan
from tests.fakes.engines import ScriptedEngine

MODEL = ModelPlan(name="tiny", upstream="org/tiny", revision=None, max_model_len=512)
WHERE = Where(region="eu-west-1", cloud="aws", container="ta-1")


def request(**changes: Any) -> dict[str, Any]:
    """A request that can be answered, with something changed."""
    return {
        "version": 1,
        "request_id": "e1/1",
        "model": "tiny",
        "upstream": "org/tiny",
        "revision": None,
        "messages": [{"role": "user", "content": "Why?"}],
        "parameters": {},
        **changes,
    }


def ticking() -> Iterator[float]:
    """A clock that shows one second more at each look."""
    return (float(second) for second in count())


async def ask(engine: ScriptedEngine, document: object) -> dict[str, Any]:
    """Answer one request on that clock."""
    clock = ticking()
    return await answer(engine, document, model=MODEL, where=WHERE, monotonic=lambda: next(clock))


async def test_an_answer_is_a_plain_document_with_all_that_a_receipt_needs() -> None:
    assert await ask(ScriptedEngine(), request()) == {
        "version": 1,
        "model": "tiny",
        "upstream": "org/tiny",
        "revision": "abc123",
        "provider": "modal",
        "region": "eu-west-1",
        "cloud": "aws",
        "container": "ta-1",
        "versions": {"scripted": "1"},
        "text": "Forty-two",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        "timings": {"queue_s": 0.125, "first_token_s": 1.0, "total_s": 3.0},
    }


async def test_messages_and_parameters_reach_the_engine_as_they_came() -> None:
    engine = ScriptedEngine()
    await ask(engine, request(parameters={"temperature": 0.0, "seed": 7, "stop": ["\n"], "max_tokens": 5}))
    [generation] = engine.generations
    assert generation.request_id == "e1/1"
    assert generation.messages == ({"role": "user", "content": "Why?"},)
    assert generation.sampling == Sampling(temperature=0.0, seed=7, stop=("\n",), max_tokens=5)


async def test_an_empty_answer_is_an_answer() -> None:
    document = await ask(ScriptedEngine(words=("",)), request())
    assert (document["text"], document["finish_reason"], "error" in document) == ("", "stop", False)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, "request_version"),
        ({"upstream": "org/other"}, "wrong_model"),
        ({"revision": "def456"}, "wrong_revision"),
        ({"request_id": ""}, "request_id"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages"),
        ({"messages": ["Why?"]}, "messages"),
        ({"parameters": None}, "parameters"),
        ({"parameters": {"temprature": 1}}, "parameters"),
    ],
)
async def test_what_can_never_be_answered_is_refused_without_asking_the_engine(
    changes: dict[str, Any], code: str
) -> None:
    engine = ScriptedEngine()
    document = await ask(engine, request(**changes))
    assert (document["error"]["code"], document["error"]["retryable"]) == (code, False)
    assert document["region"] == "eu-west-1"
    assert engine.started == []


async def test_something_else_than_a_document_is_refused() -> None:
    assert (await ask(ScriptedEngine(), ["hello"]))["error"]["code"] == "request_version"


async def test_the_revision_that_the_caller_means_is_answered_from() -> None:
    assert (await ask(ScriptedEngine(), request(revision="abc123")))["text"] == "Forty-two"


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (RequestRefusedError("too_long", "600 tokens do not fit into 512"), "too_long", False),
        (GenerationFailedError("out of blocks"), "generation_failed", True),
    ],
)
async def test_errors_of_the_engine_are_answers(error: Exception, code: str, retryable: bool) -> None:
    engine = ScriptedEngine(error=error)
    document = await ask(engine, request())
    assert document["error"] == {
        "error_class": "rejected" if not retryable else "unavailable",
        "code": code,
        "message": str(error),
        "retryable": retryable,
    }
    assert engine.aborted == []


async def test_a_dead_engine_is_the_containers_business() -> None:
    with pytest.raises(EngineBrokenError):
        await ask(ScriptedEngine(error=EngineBrokenError("gone")), request())
    assert broken("gone")["error"]["retryable"] is True


async def test_cancelling_one_request_aborts_it_in_the_engine_and_leaves_its_neighbours_alone() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    tasks = [asyncio.create_task(ask(engine, request(request_id=f"e{number}/1"))) for number in range(3)]
    for _ in tasks:
        await engine.begun.acquire()
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert engine.aborted == ["e1/1"]
    assert engine.gate is not None
    engine.gate.set()
    assert (await tasks[0])["text"] == (await tasks[2])["text"] == "Forty-two"


async def test_an_error_that_nobody_foresaw_aborts_too() -> None:
    engine = ScriptedEngine(error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await ask(engine, request())
    assert engine.aborted == ["e1/1"]
