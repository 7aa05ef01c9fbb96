"""The HTTP endpoint of an executor against the web endpoint of a Modal app, as Modal's proxy would serve it.

The gateway behind it calls the class through the SDK, so that the way of an answer, and of an abort, is the whole one:
HTTP client, gateway, control plane, container, engine.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import modal
import pytest
from modal_proto import api_pb2
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from executor.endpoints.factory import create_endpoint
from executor.endpoints.port import CallTrace, Endpoint, EndpointError
from modal_deployment.answering import Document, Where
from modal_deployment.engine import RequestRefusedError
from modal_deployment.gateway import call
from modal_deployment.plan import ModelPlan, RegionPlan
from modal_deployment.web import create_web
from parallax_cli.mock_endpoint import serving
from tests.fakes.engines import ScriptedEngine
from tests.fakes.modal_control_plane import TOKEN_ID, TOKEN_SECRET
from tests.harness.modal_stage import APP, CLASS, MODEL, REGION_OBSERVED, Stage, request, stage, trace

PLAN: Final = RegionPlan(
    region="eu",
    app=APP,
    modal_region="eu",
    gpu="L4",
    max_containers=1,
    max_inputs=4,
    scaledown_window_s=60,
    startup_timeout_s=60,
    timeout_s=60,
    snapshot="off",
    models=(MODEL,),
)
KEY, SECRET = "wk-1", "ws-1"


class Proxy:
    """Modal's proxy: nobody gets through without a proxy token."""

    def __init__(self, behind: Starlette) -> None:
        self._behind = behind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if (headers.get(b"modal-key"), headers.get(b"modal-secret")) != (KEY.encode(), SECRET.encode()):
            refusal = JSONResponse({"error": "modal-http: missing credentials for proxy authorization"}, 401)
            await refusal(scope, receive, send)
            return
        await self._behind(scope, receive, send)


@dataclass(slots=True)
class OverHttp:
    """An executor's HTTP endpoint, and what is behind it."""

    endpoint: Endpoint
    behind: Stage


@asynccontextmanager
async def over_http(
    folder: Path, engine: ScriptedEngine | None = None, *, secret: str = SECRET, keep_alive_s: float = 10.0
) -> AsyncIterator[OverHttp]:
    """The whole way from an executor's HTTP endpoint to an engine."""
    headers = folder / "headers"
    headers.write_text(f"Modal-Key: {KEY}\nModal-Secret: {secret}\n")
    async with stage(engine) as behind:
        client: Any = modal.Client(behind.url, api_pb2.CLIENT_TYPE_CLIENT, (TOKEN_ID, TOKEN_SECRET))
        opened = await client.__aenter__()

        async def ask(model: ModelPlan, document: Document) -> Document:
            instance: Any = modal.Cls.from_name(APP, CLASS, client=opened)(model=model.name)
            return await call(instance.generate, document)

        web = create_web(PLAN, Where(region="eu-west-1", cloud="aws", container=None), ask, keep_alive_s=keep_alive_s)
        proxied: Any = Proxy(web)
        async with serving(proxied) as url:
            endpoint = create_endpoint(f"openai+{url}", {"PARALLAX_ENDPOINT_HEADERS_FILE": str(headers)})
            yield OverHttp(endpoint, behind)
            await endpoint.close()
        await opened.close.aio()


async def test_an_answer_comes_all_the_way(tmp_path: Path) -> None:
    async with over_http(tmp_path) as on:
        seen = trace()
        answer = await on.endpoint.call(request(), seen)
    assert (answer.text, answer.finish_reason, answer.model_reported) == ("Forty-two", "stop", "tiny")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert seen.region_observed == REGION_OBSERVED
    assert seen.provider_call_id


async def test_without_the_right_proxy_token_nothing_is_asked(tmp_path: Path) -> None:
    async with over_http(tmp_path, secret="wrong") as on:
        with pytest.raises(EndpointError) as caught:
            await on.endpoint.call(request(), trace())
        assert (caught.value.info.error_class, caught.value.info.retryable) == ("authentication", False)
        assert on.behind.plane.calls == []


async def test_a_slow_answer_keeps_its_connection_and_is_no_first_byte_before_it_is_there(tmp_path: Path) -> None:
    async with over_http(tmp_path, ScriptedEngine(gate=asyncio.Event()), keep_alive_s=0.05) as on:
        begun: list[float] = []
        seen = CallTrace(on_first_byte=lambda: begun.append(time.monotonic()))
        asked = asyncio.create_task(on.endpoint.call(request(), seen))
        await on.behind.engine.begun.acquire()
        await asyncio.sleep(0.5)
        assert begun == []
        assert on.behind.engine.gate is not None
        on.behind.engine.gate.set()
        assert (await asked).text == "Forty-two"
        assert len(begun) == 1


@pytest.mark.parametrize("keep_alive_s", [0.05, 30.0], ids=["while waiting", "before the headers"])
async def test_leaving_aborts_the_generation_at_the_far_end(tmp_path: Path, keep_alive_s: float) -> None:
    async with over_http(tmp_path, ScriptedEngine(gate=asyncio.Event()), keep_alive_s=keep_alive_s) as on:
        asked = asyncio.create_task(on.endpoint.call(request(), trace()))
        await on.behind.engine.begun.acquire()
        await asyncio.sleep(0.2)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await on.behind.until(lambda calls: all(call.ended for call in calls))
        [cancelled] = on.behind.plane.calls
        assert len(cancelled.cancels) == 1
        assert not cancelled.terminated_containers
        assert on.behind.engine.aborted == on.behind.engine.started


@pytest.mark.parametrize("keep_alive_s", [0.0, 10.0], ids=["in the stream", "by its status"])
async def test_a_refused_request_is_a_permanent_error(tmp_path: Path, keep_alive_s: float) -> None:
    engine = ScriptedEngine(error=RequestRefusedError("too_long", "600 tokens do not fit"))
    async with over_http(tmp_path, engine, keep_alive_s=keep_alive_s) as on:
        with pytest.raises(EndpointError) as caught:
            await on.endpoint.call(request(), trace())
    assert not caught.value.info.retryable
    assert "600 tokens do not fit" in caught.value.info.message
