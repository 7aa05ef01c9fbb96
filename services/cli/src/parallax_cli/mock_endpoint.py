"""An OpenAI-compatible server that follows a script: slow, failing, stalling or vanishing on demand.

For trying out jobs without a model, and for our own tests. ``GET /__log`` tells what happened to every call:
when it arrived, when its answer began, and when it finished or its client hung up.
"""

import asyncio
import json
import socket
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from parallax.serving import serving as serving_http
from parallax_cli.mock_script import FOREVER_S, Script, Step

MAX_LOG: Final = 20_000
"""Calls remembered; the oldest go first."""
MAX_PROMPT_CHARS: Final = 200


@dataclass(slots=True)
class Call:
    """What happened to one call. Times are seconds since 1970."""

    number: int
    request_id: str | None
    model: str
    prompt: str
    received_at: float
    status: int | None = None
    words: int = 0
    first_byte_at: float | None = None
    finished_at: float | None = None
    aborted_at: float | None = None
    """When the client hung up before the end."""


class _Wire(NamedTuple):
    """One request as the server gives it."""

    scope: Scope
    receive: Receive
    send: Send

    async def respond(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def hung_up(self, seconds: float) -> bool:
        """Wait; true as soon as the client has closed the connection."""
        if seconds <= 0:
            return False
        try:
            async with asyncio.timeout(seconds):
                while (await self.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return False
        return True


@dataclass(slots=True, eq=False)
class Mock:
    """The state behind the application."""

    script: Script
    changed: Callable[[], None]
    """Called after every entry in the log."""
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=MAX_LOG))
    received: int = 0
    _seen: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    _pending: dict[int, tuple[Call, Step, int]] = field(default_factory=dict)
    _woken_at: float | None = None

    async def complete(self, wire: _Wire) -> None:
        """``POST /v1/chat/completions``."""
        request = Request(wire.scope, wire.receive)
        try:
            document = await request.json()
            model, prompt = str(document["model"]), "\n".join(m["content"] for m in document["messages"])
        except ClientDisconnect:
            return
        except (ValueError, KeyError, TypeError):
            await wire.respond(_error(400, "not a chat completion request"))
            return
        self.received += 1
        call = Call(self.received, request.headers.get("x-request-id"), model, prompt[:MAX_PROMPT_CHARS], time.time())
        self.calls.append(call)
        self.changed()
        key = self.script.api_key
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            step = Step(status=401, message="wrong API key")
        else:
            step = self._step(model, prompt)
        await self._answer(call, step, step.pending, wire)

    async def result(self, wire: _Wire) -> None:
        """``GET /v1/results/NUMBER``: where a 303 pointed to."""
        held = self._pending.pop(int(wire.scope["path_params"]["number"]), None)
        if held is None:
            await wire.respond(_error(404, "no such result"))
            return
        call, step, pending = held
        await self._answer(call, step, pending, wire)

    async def log(self, request: Request) -> Response:
        """``GET /__log`` and ``DELETE /__log``."""
        if request.method == "DELETE":
            self.calls.clear()
        return JSONResponse({"received": self.received, "calls": [asdict(call) for call in self.calls]})

    async def list_models(self, _request: Request) -> Response:
        """``GET /v1/models``."""
        return JSONResponse({"object": "list", "data": [{"id": m, "object": "model"} for m in self.script.models]})

    async def health(self, _request: Request) -> Response:
        """``GET /health``."""
        return JSONResponse({"status": "ok"})

    def _step(self, model: str, prompt: str) -> Step:
        for index, rule in enumerate(self.script.rules):
            if rule.model in (None, model) and (rule.contains is None or rule.contains in prompt):
                turn = self._seen[index, model, prompt]
                self._seen[index, model, prompt] += 1
                return rule.steps[min(turn, len(rule.steps) - 1)]
        return self.script.default

    def _cold_for_s(self) -> float:
        now = time.monotonic()
        if self._woken_at is None:
            self._woken_at = now
        return max(0.0, self._woken_at + self.script.cold_start_s - now)

    async def _answer(self, call: Call, step: Step, pending: int, wire: _Wire) -> None:
        cold_s = self._cold_for_s() if self.script.cold_start_s else 0.0
        if cold_s and self.script.cold_start == "refuse":
            step = Step(status=503, message="the model is starting")
        elif await wire.hung_up(cold_s + step.delay_s):
            self._aborted(call)
            return
        if pending or step.redirect_to:
            call.status = 303
            self._pending[call.number] = (call, step, pending - 1)
            location = step.redirect_to or f"/v1/results/{call.number}"
            await wire.respond(Response(status_code=303, headers={"Location": location}))
        elif step.status != 200:
            call.status = step.status
            self._finished(call)
            await wire.respond(_error(step.status, step.message, step.retry_after))
        else:
            await self._speak(call, step, wire)

    async def _speak(self, call: Call, step: Step, wire: _Wire) -> None:
        """Send the answer as the step says, word by word or at once."""
        call.status = 200
        words = _words(call, step)
        headers = [(b"x-region", step.region.encode())] if step.region else []
        if step.whole:
            call.first_byte_at = time.time()
            call.words = len(words)
            self._finished(call)
            document = _document(call, step, words)
            await wire.respond(JSONResponse(document, headers={"X-Region": step.region} if step.region else None))
            return
        headers.append((b"content-type", b"text/event-stream"))
        await wire.send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in _parts(call, step, words):
            if part is None:
                if await wire.hung_up(FOREVER_S):
                    self._aborted(call)
                return
            await wire.send({"type": "http.response.body", "body": part, "more_body": True})
            if call.first_byte_at is None:
                call.first_byte_at = time.time()
                self.changed()
            if step.token_interval_s and await wire.hung_up(step.token_interval_s):
                self._aborted(call)
                return
        self._finished(call)
        if step.drop_after is None:
            await wire.send({"type": "http.response.body", "body": b""})
        # An answer left without its end makes the server close the connection.

    def _finished(self, call: Call) -> None:
        call.finished_at = time.time()
        self.changed()

    def _aborted(self, call: Call) -> None:
        call.aborted_at = time.time()
        self.changed()


def create_mock(script: Script | None = None, changed: Callable[[], None] = lambda: None) -> Starlette:
    """The application; its state is found at ``app.state.mock``."""
    mock = Mock(script or Script(), changed)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _Raw(mock.complete), methods=["POST"]),
            Route("/v1/results/{number:int}", _Raw(mock.result), methods=["GET"]),
            Route("/v1/models", mock.list_models),
            Route("/health", mock.health),
            Route("/__log", mock.log, methods=["GET", "DELETE"]),
        ]
    )
    app.state.mock = mock
    return app


@asynccontextmanager
async def serving(app: Starlette, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The application answers while the block runs; gives its base URL. Port 0 takes a free one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False,
            timeout_graceful_shutdown=0, backlog=2048,
        )  # fmt: skip
        async with serving_http(config, listening, abrupt=True):
            yield f"http://{host}:{listening.getsockname()[1]}/v1"


def run(script: Script, *, host: str, port: int) -> None:
    """Serve until interrupted: the body of ``parallax mock-endpoint``."""
    uvicorn.run(create_mock(script), host=host, port=port, http="h11", ws="none", lifespan="off", access_log=False)


class _Raw:
    """An ASGI endpoint for a route: what watches for a disconnect needs ``receive`` itself."""

    def __init__(self, handler: Callable[[_Wire], Awaitable[None]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(_Wire(scope, receive, send))


def _words(call: Call, step: Step) -> list[str]:
    text = f"Mock answer to: {call.prompt[-60:]}" if step.text is None else step.text
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]] if text else []


def _parts(call: Call, step: Step, words: list[str]) -> Iterator[bytes | None]:
    """The pieces of a streamed answer, in one when nothing happens between words; ``None`` is silence without end."""
    ends = [n for n in (step.stall_after, step.drop_after, step.garbage_after, step.fail_after) if n is not None]
    spoken = words[: min(ends)] if ends else words
    chunks = [_chunk(call, {"role": "assistant", "content": ""})]
    chunks += [_chunk(call, {"content": word}) for word in spoken]
    call.words = len(spoken)
    if step.refusal is not None:
        chunks.append(_chunk(call, {"refusal": step.refusal}))
    if step.garbage_after is not None:
        chunks.append(b"data: {garbage\n\n")
    if step.fail_after is not None:
        chunks.append(_event({"error": {"message": step.message, "code": step.status if step.status != 200 else 500}}))
    if not ends:
        chunks.append(_chunk(call, {}, step.finish_reason))
        chunks.append(_event({**_envelope(call), "choices": [], "usage": _usage(call, words)}))
        chunks.append(b"data: [DONE]\n\n")
    if step.token_interval_s:
        yield from chunks
    else:
        yield b"".join(chunks)
    if step.stall_after is not None:
        yield None


def _envelope(call: Call) -> dict[str, object]:
    return {
        "id": f"chatcmpl-mock-{call.number}",
        "object": "chat.completion.chunk",
        "created": int(call.received_at),
        "model": call.model,
        "system_fingerprint": "mock",
    }


def _chunk(call: Call, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _event({**_envelope(call), "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def _event(document: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _document(call: Call, step: Step, words: list[str]) -> dict[str, object]:
    message = {"role": "assistant", "content": "".join(words), "refusal": step.refusal}
    return {
        **_envelope(call),
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": step.finish_reason}],
        "usage": _usage(call, words),
    }


def _usage(call: Call, words: list[str]) -> dict[str, int]:
    return {"prompt_tokens": len(call.prompt.split()), "completion_tokens": len(words)}


def _error(status: int, message: str, retry_after: str | None = None) -> Response:
    headers = {"Retry-After": retry_after} if retry_after is not None else None
    return JSONResponse({"error": {"message": message, "type": "scripted"}}, status_code=status, headers=headers)
