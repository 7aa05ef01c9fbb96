"""The mock endpoint as users see it: models, keys, log."""

import asyncio
import json
from typing import Any

import httpx

from parallax_cli.mock_script import Script, Step
from tests.fakes.model_server import model_server

ASK = {"model": "mock", "messages": [{"role": "user", "content": "Why?"}], "stream": True}


async def log_of(url: str, http: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await http.get(url.removesuffix("/v1") + "/__log")).json()
    return document


async def test_the_log_tells_what_happened_to_every_call() -> None:
    async with model_server(Step(text="Because.")) as server, httpx.AsyncClient() as http:
        answer = await http.post(server.url + "/chat/completions", json=ASK, headers={"X-Request-Id": "r-1"})
        log = await log_of(server.url, http)
        await http.delete(server.url.removesuffix("/v1") + "/__log")
        cleared = await log_of(server.url, http)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert "Because." in "".join(
        choice["delta"].get("content", "") for event in events[:-1] for choice in json.loads(event)["choices"]
    )
    [call] = log["calls"]
    assert (call["request_id"], call["model"], call["prompt"], call["status"]) == ("r-1", "mock", "Why?", 200)
    assert call["received_at"] <= call["first_byte_at"] <= call["finished_at"]
    assert call["aborted_at"] is None
    assert (cleared["calls"], cleared["received"]) == ([], 1)


async def test_a_client_that_hangs_up_is_logged() -> None:
    async with model_server(Step(delay_s=3600)) as server, httpx.AsyncClient() as http:
        call = asyncio.create_task(http.post(server.url + "/chat/completions", json=ASK, timeout=None))
        await server.until(lambda calls: len(calls) == 1)
        call.cancel()
        await server.until(lambda calls: calls[0].aborted_at is not None)
        assert server.calls[0].finished_at is None


async def test_models_health_keys_and_nonsense() -> None:
    async with model_server(Script(api_key="k", models=("a", "b"))) as server, httpx.AsyncClient() as http:
        models = (await http.get(server.url + "/models")).json()
        assert [model["id"] for model in models["data"]] == ["a", "b"]
        assert (await http.get(server.url.removesuffix("/v1") + "/health")).status_code == 200
        complete = server.url + "/chat/completions"
        assert (await http.post(complete, json=ASK)).status_code == 401
        assert (await http.post(complete, json=ASK, headers={"Authorization": "Bearer k"})).status_code == 200
        assert (await http.post(complete, content=b"{")).status_code == 400
        assert (await http.post(complete, json={"model": "mock", "messages": [3]})).status_code == 400
        assert (await http.get(server.url + "/results/77")).status_code == 404
