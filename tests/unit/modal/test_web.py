"""The OpenAI-compatible web endpoint, driven as an ASGI application."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from modal_deployment.answering import Document, Where, answer
from modal_deployment.plan import ModelPlan, RegionPlan
from modal_deployment.web import MAX_BODY_BYTES, create_web
from tests.fakes.engines import ScriptedEngine

PLAN = RegionPlan(
    region="eu",
    app="parallax-eu",
    modal_region="eu",
    gpu="L4",
    max_containers=1,
    max_inputs=4,
    scaledown_window_s=60,
    startup_timeout_s=60,
    timeout_s=60,
    snapshot="off",
    models=(ModelPlan(name="tiny", upstream="org/tiny", revision="abc123", max_model_len=512),),
)
HERE = Where(region="eu-west-1", cloud="aws", container="ta-1")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}]}


def asking(engine: ScriptedEngine) -> Callable[[ModelPlan, Document], Awaitable[Document]]:
    """Ask the engine in this process, with the request handling of the containers."""

    async def ask(model: ModelPlan, request: Document) -> Document:
        return await answer(engine, request, model=model, where=HERE, monotonic=asyncio.get_running_loop().time)

    return ask


def client(engine: ScriptedEngine | None = None, *, keep_alive_s: float = 10.0) -> httpx.AsyncClient:
    """A client of the application."""
    application = create_web(PLAN, HERE, asking(engine or ScriptedEngine()), keep_alive_s=keep_alive_s)
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://web")


def events(text: str) -> list[Any]:
    """The documents of a stream."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(document) for document in data]


async def test_models_says_what_is_served_and_where_it_runs() -> None:
    async with client() as web:
        document = (await web.get("/models")).json()
    assert document == {
        "app": "parallax-eu",
        "region": "eu",
        "modal_region": "eu",
        "region_observed": "eu-west-1",
        "cloud_observed": "aws",
        "models": [{"name": "tiny", "upstream": "org/tiny", "revision": "abc123"}],
    }


async def test_the_openai_list_names_the_same_models() -> None:
    async with client() as web:
        assert [model["id"] for model in (await web.get("/v1/models")).json()["data"]] == ["tiny"]


@pytest.mark.parametrize("name", ["tiny", "org/tiny"])
async def test_a_chat_completion(name: str) -> None:
    async with client() as web:
        response = await web.post("/v1/chat/completions", json={**CHAT, "model": name})
    document = response.json()
    assert response.headers["x-region"] == "eu-west-1"
    assert document["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Forty-two"}, "finish_reason": "stop"}
    ]
    assert document["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


async def test_a_streamed_completion_with_usage() -> None:
    async with client() as web:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        response = await web.post("/v1/chat/completions", json=body)
    said, ended, usage = events(response.text)
    assert said["choices"][0]["delta"]["content"] == "Forty-two"
    assert ended["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] == 9


async def test_parameters_are_passed_on_and_unknown_ones_of_openai_ignored() -> None:
    engine = ScriptedEngine()
    async with client(engine) as web:
        body = {**CHAT, "temperature": 0.5, "max_completion_tokens": 9, "stop": "\n", "user": "me", "n": 1}
        await web.post("/v1/chat/completions", json=body)
    sampling = engine.generations[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.5, 9, ("\n",))


async def test_a_slow_answer_is_waited_for_on_an_open_stream() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    async with client(engine, keep_alive_s=0.01) as web:
        body = {**CHAT, "stream": True}
        asked = asyncio.create_task(web.post("/v1/chat/completions", json=body))
        await engine.begun.acquire()
        await asyncio.sleep(0.05)  # several keep-alives long
        engine.gate.set()
        response = await asked
    assert response.text.startswith(": waiting\n\n")
    assert events(response.text)[0]["choices"][0]["delta"]["content"] == "Forty-two"


async def test_an_error_after_the_stream_began_is_told_inside_it() -> None:
    engine = ScriptedEngine(gate=asyncio.Event(), error=ZeroDivisionError())
    assert engine.gate is not None

    async def ask(model: ModelPlan, request: Document) -> Document:
        await asyncio.sleep(0.05)
        return {"version": 1, "error": {"error_class": "rejected", "code": "x", "message": "no", "retryable": False}}

    application = create_web(PLAN, HERE, ask, keep_alive_s=0.01)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://web") as web:
        response = await web.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert events(response.text) == [{"error": {"message": "no", "type": "rejected", "code": 400}}]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": "mistral-7b", "messages": []}', 404),
        (b'{"model": "tiny", "messages": []}', 400),
        (b'{"model": ["tiny"], "messages": []}', 404),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_its_reason(body: bytes, status: int) -> None:
    async with client() as web:
        response = await web.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_aborts_its_generation(streamed: bool) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    application = create_web(PLAN, HERE, asking(engine), keep_alive_s=0.01)
    left = asyncio.Event()
    parts = [{"type": "http.request", "body": json.dumps({**CHAT, "stream": streamed}).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if parts:
            return parts.pop()
        if not streamed:
            await engine.begun.acquire()
            left.set()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            left.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("web", 80),
    }
    await asyncio.wait_for(application(scope, receive, send), timeout=10)
    assert engine.aborted == engine.started
    assert engine.finished == []
