"""The OpenAI-compatible web endpoint of an app, and its ``/models``, over whatever answers requests.

A response is streamed: comments keep it open while the answer is awaited, so that neither a proxy's read timeout
nor Modal's limit of 150 s to the first byte strikes, and closing it cancels the call behind it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from modal_deployment.answering import VERSION, Document, Where
from modal_deployment.plan import ModelPlan, RegionPlan

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""Longer than the longest question and system prompt a job may hold, in any script."""
KEEP_ALIVE_S: Final = 10.0
"""Comments are sent this often; half the usual idle timeout of proxies and far below Modal's 150 s."""
CLIENT_LEFT: Final = 499
"""For logs alone: nobody reads the response."""
_SAMPLING: Final = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")

Ask = Callable[[ModelPlan, Document], Awaitable[Document]]
"""Answers one request of one model; cancelling it aborts the generation."""


def registry(plan: RegionPlan, where: Where) -> Document:
    """What the app serves and where it runs: region asked for and region observed, never one for the other."""
    models = [{"name": m.name, "upstream": m.upstream, "revision": m.revision} for m in plan.models]
    return {
        "app": plan.app,
        "region": plan.region,
        "modal_region": plan.modal_region,
        "region_observed": where.region,
        "cloud_observed": where.cloud,
        "models": models,
    }


def create_web(plan: RegionPlan, where: Where, ask: Ask, *, keep_alive_s: float = KEEP_ALIVE_S) -> Starlette:
    """The web endpoint. Whoever serves it checks the caller's right to use it."""

    async def models(_: Request) -> Response:
        return JSONResponse(registry(plan, where))

    async def openai_models(_: Request) -> Response:
        data = [{"id": model.name, "object": "model", "created": 0, "owned_by": plan.app} for model in plan.models]
        return JSONResponse({"object": "list", "data": data})

    async def chat(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return _problem(413, "too_large", f"a request has at most {MAX_BODY_BYTES} bytes")
        try:
            document = json.loads(body)
        except ValueError as error:
            return _problem(400, "invalid_json", str(error))
        if not isinstance(document, dict):
            return _problem(400, "invalid_request", "a request is a JSON object")
        model = plan.model(document.get("model"))
        if model is None:
            known = ", ".join(m.name for m in plan.models)
            return _problem(404, "model_not_found", f"model {document.get('model')!r} is not served here; {known} are")
        return await _respond(request, _Exchange(model, document), ask, keep_alive_s)

    return Starlette(
        routes=[
            Route("/models", models),
            Route("/v1/models", openai_models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ]
    )


async def _body(request: Request) -> bytes | None:
    """The body, or ``None`` when it is too large, without reading more of it."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


class _Exchange:
    """One chat completion: the request translated, the answer translated back."""

    def __init__(self, model: ModelPlan, document: Document) -> None:
        self.model = model
        self.document = document
        self.completion_id = f"chatcmpl-{uuid4().hex}"
        self.created = int(time.time())
        self.streamed = document.get("stream") is True

    def request(self) -> Document:
        """The request as the class takes it. Values are passed on as they came: the class checks them."""
        parameters = {name: self.document[name] for name in _SAMPLING if self.document.get(name) is not None}
        limit = self.document.get("max_completion_tokens", self.document.get("max_tokens"))
        stop = self.document.get("stop")
        if limit is not None:
            parameters["max_tokens"] = limit
        if stop is not None:
            parameters["stop"] = [stop] if isinstance(stop, str) else stop
        return {
            "version": VERSION,
            "request_id": self.completion_id,
            "model": self.model.name,
            "upstream": self.model.upstream,
            "revision": None,
            "messages": self.document.get("messages"),
            "parameters": parameters,
        }

    def whole(self, answer: Document) -> Document:
        """The answer as one completion."""
        message = {"role": "assistant", "content": answer["text"]}
        choice = {"index": 0, "message": message, "finish_reason": answer["finish_reason"]}
        return self._envelope("chat.completion", [choice]) | {"usage": _usage(answer)}

    def chunks(self, answer: Document) -> list[Document]:
        """The answer as the chunks of a stream."""
        said = {"index": 0, "delta": {"role": "assistant", "content": answer["text"]}, "finish_reason": None}
        ended = {"index": 0, "delta": {}, "finish_reason": answer["finish_reason"]}
        chunks = [self._envelope("chat.completion.chunk", [choice]) for choice in (said, ended)]
        options = self.document.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage") is True:
            chunks.append(self._envelope("chat.completion.chunk", []) | {"usage": _usage(answer)})
        return chunks

    def _envelope(self, kind: str, choices: list[Document]) -> Document:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        }


async def _respond(request: Request, exchange: _Exchange, ask: Ask, keep_alive_s: float) -> Response:
    """Answer with a status of its own when the answer comes at once, with an open stream when it takes longer."""
    asking = asyncio.ensure_future(ask(exchange.model, exchange.request()))
    leaving = asyncio.ensure_future(_left(request))
    try:
        timeout_s = keep_alive_s if exchange.streamed else None
        await asyncio.wait({asking, leaving}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        gone = leaving.done() and not asking.done()
    except asyncio.CancelledError:
        await _give_up(asking)
        raise
    finally:
        await _give_up(leaving)
    if gone:
        await _give_up(asking)
        return Response(status_code=CLIENT_LEFT)
    if not asking.done():
        return StreamingResponse(_stream(exchange, asking, keep_alive_s), media_type="text/event-stream")
    answer = asking.result()
    if "error" in answer:
        return JSONResponse(_error(answer), status_code=_status(answer))
    if not exchange.streamed:
        return JSONResponse(exchange.whole(answer), headers=_placed(answer))
    events = _stream(exchange, asking, keep_alive_s)
    return StreamingResponse(events, media_type="text/event-stream", headers=_placed(answer))


async def _left(request: Request) -> None:
    """Return when the client has left; its whole request was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(exchange: _Exchange, asking: asyncio.Future[Document], keep_alive_s: float) -> AsyncIterator[str]:
    """Server-sent events until the answer is complete; closing the stream gives the call up."""
    try:
        while not asking.done():
            yield ": waiting\n\n"
            await asyncio.wait({asking}, timeout=keep_alive_s)
        answer = asking.result()
        documents = [_error(answer)] if "error" in answer else exchange.chunks(answer)
        for document in documents:
            yield f"data: {json.dumps(document)}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        await _give_up(asking)


async def _give_up(waiting: asyncio.Future[Any]) -> None:
    """Cancel and see it end; what is finished is left as it is."""
    if not waiting.done():
        waiting.cancel()
        await asyncio.wait({waiting})


def _status(answer: Document) -> int:
    """The HTTP status of an answer that is an error."""
    return 503 if answer["error"]["retryable"] else 400


def _error(answer: Document) -> Document:
    """An error as clients of OpenAI read it; in a stream its status can only be told inside."""
    error = answer["error"]
    return {"error": {"message": error["message"], "type": error["error_class"], "code": _status(answer)}}


def _usage(answer: Document) -> Document:
    usage: Document = answer["usage"]
    return usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}


def _placed(answer: Document) -> dict[str, str]:
    """The region that generated the answer, where it is known before the headers go out."""
    return {"x-region": answer["region"]} if answer.get("region") else {}


def _problem(status: int, code: str, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": code}}, status_code=status)
