"""Calls an OpenAI-compatible server: vLLM, llama.cpp, or anybody's that speaks chat completions.

Answers are always streamed, so that closing the connection is what aborts a generation: a cancelled task hangs up
before anything else happens.
"""

import asyncio
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from executor.endpoints.answers import AnswerParts, MalformedError, StreamedError
from executor.endpoints.failures import broken_failure, connect_failure, status_failure
from executor.endpoints.http1 import BrokenError, Client, ConnectError, Exchange
from executor.endpoints.port import CallTrace, EndpointError, ModelAnswer, ModelRequest
from executor.endpoints.sse import EventParser
from executor.error_codes import ErrorCode
from parallax.contracts.outcomes import ErrorInfo

MAX_STREAM_BYTES: Final = 64 * 1024 * 1024
"""Envelopes included: 32,768 tokens in chunks of their own, 2 kB each."""
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_REDIRECTS: Final = 10_000
"""Modal answers 303 every 150 s, others may at once: the attempt's limits end it long before."""
POLL_S: Final = 0.2
"""Least time between two looks at a result that is not there yet."""
CONNECT_TIMEOUT_S: Final = 10.0
KEEPALIVE_S: Final = 3.0
"""Idle connections are dropped before common servers drop them (uvicorn: 5 s): a call must not run into that."""
STALL_TIMEOUT_S: Final = 60.0
"""Longest silence inside an answer; servers send a token at a time, so that this is not slowness any more."""

LINGER_S: Final = 1.0
"""How long a server may take to end a response whose answer is complete."""


class OpenAIEndpoint:
    """One base URL, one pool of connections."""

    provider: Final = "openai"
    reports_first_byte: Final = True

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None, stall_timeout_s: float = STALL_TIMEOUT_S
    ) -> None:
        self._client = Client(base_url, connect_timeout_s=CONNECT_TIMEOUT_S, keepalive_s=KEEPALIVE_S)
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._stall_timeout_s = stall_timeout_s
        self._headers = [
            ("Accept", "text/event-stream, application/json"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", f"parallax/{importlib.metadata.version('parallax-executor')}"),
            *(headers or {}).items(),
        ]
        self.versions: Mapping[str, str] = {"h11": importlib.metadata.version("h11")}

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Ask once; see the port."""
        try:
            return await self._call(request, trace)
        except ConnectError as error:
            raise connect_failure(error) from error
        except BrokenError as error:
            raise broken_failure(error, trace.http_status) from error
        except MalformedError as error:
            info = ErrorInfo(
                error_class="protocol", code=ErrorCode.MALFORMED_ANSWER, message=str(error), retryable=True
            )
            raise EndpointError(info, http_status=trace.http_status) from error
        except StreamedError as error:
            raise status_failure(error.status or 500, str(error), None, streamed=True) from error

    async def close(self) -> None:
        """Release connections."""
        await self._client.close()

    async def _call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        method, url, body = "POST", self._url, _body(request)
        headers = [
            *self._headers,
            ("Content-Type", "application/json"),
            ("X-Request-Id", f"{request.execution_id}/{request.attempt}"),
        ]
        for _ in range(MAX_REDIRECTS):
            exchange = await self._client.send(method, _target(url), headers, body)
            try:
                trace.http_status = exchange.status
                trace.region_observed = exchange.headers.get("x-region") or trace.region_observed
                if exchange.status == 200:
                    return await self._read(exchange, trace)
                said = await _read_error(exchange)
            finally:
                exchange.release()
            if exchange.status != 303 or "location" not in exchange.headers:
                raise status_failure(exchange.status, said, exchange.headers.get("retry-after"))
            # The call still runs; its result will be where the server points.
            method, url, body, headers = "GET", self._result_url(url, exchange), b"", self._headers
            await asyncio.sleep(_poll_s(exchange.headers.get("retry-after")))
        info = ErrorInfo(
            error_class="protocol", code=ErrorCode.TOO_MANY_REDIRECTS, message="303 without end", retryable=False
        )
        raise EndpointError(info, http_status=303)

    def _result_url(self, url: str, exchange: Exchange) -> str:
        """Where a 303 points; only ever to the same server, which alone may see the headers and the answer."""
        target = urljoin(url, exchange.headers["location"])
        try:
            parts = urlsplit(target)
            origin = (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        except ValueError:
            origin = ("", None, 0)
        if origin != self._client.origin:
            message = f"refused to follow a redirect to another server ({target!r:.200})"
            info = ErrorInfo(error_class="protocol", code=ErrorCode.FOREIGN_REDIRECT, message=message, retryable=False)
            raise EndpointError(info, http_status=exchange.status)
        return target

    async def _read(self, exchange: Exchange, trace: CallTrace) -> ModelAnswer:
        parts = AnswerParts()
        streamed = exchange.headers.get("content-type", "").startswith("text/event-stream")
        silence = asyncio.timeout(None)
        try:
            async with silence:
                if streamed:
                    await self._read_events(exchange, parts, trace, silence)
                else:
                    await self._read_document(exchange, parts, trace, silence)
        except TimeoutError as error:
            if not silence.expired():
                raise
            if not parts.done:
                message = f"no part of the answer arrived for {self._stall_timeout_s:g} s in mid-stream"
                info = ErrorInfo(error_class="timeout", code=ErrorCode.STALL_TIMEOUT, message=message, retryable=True)
                raise EndpointError(info, http_status=exchange.status) from error
        trace.provider_call_id = trace.provider_call_id or parts.call_id
        return parts.answer()

    async def _read_events(
        self, exchange: Exchange, parts: AnswerParts, trace: CallTrace, silence: asyncio.Timeout
    ) -> None:
        """Read to the end of the body, also behind ``[DONE]``: only a response read to its end frees its connection."""
        loop = asyncio.get_running_loop()
        parser = EventParser()
        size_bytes = 0
        while chunk := await exchange.read():
            size_bytes += len(chunk)
            if size_bytes > MAX_STREAM_BYTES:
                raise MalformedError(f"the answer is larger than {MAX_STREAM_BYTES} bytes")
            for data in parser.feed(chunk):
                parts.add(data)
                trace.provider_call_id = trace.provider_call_id or parts.call_id
                trace.first_byte()
            if trace.answering:  # comments keep a waiting connection alive; they are no part of an answer
                silence.reschedule(loop.time() + (LINGER_S if parts.done else self._stall_timeout_s))
        if not parts.done and (last := parser.end()) is not None:
            parts.add(last)

    async def _read_document(
        self, exchange: Exchange, parts: AnswerParts, trace: CallTrace, silence: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        body = bytearray()
        while chunk := await exchange.read():
            trace.first_byte()
            silence.reschedule(loop.time() + self._stall_timeout_s)
            body += chunk
            if len(body) > MAX_STREAM_BYTES:
                raise MalformedError(f"the answer is larger than {MAX_STREAM_BYTES} bytes")
        parts.add_whole(bytes(body))


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _body(request: ModelRequest) -> bytes:
    parameters: dict[str, Any] = request.parameters.model_dump(exclude_none=True)
    document = {
        "model": request.upstream,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **parameters,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


async def _read_error(exchange: Exchange) -> bytes:
    body = bytearray()
    while chunk := await exchange.read():
        body += chunk
        if len(body) >= MAX_ERROR_BYTES:
            break
    return bytes(body[:MAX_ERROR_BYTES])


def _poll_s(retry_after: str | None) -> float:
    return max(POLL_S, min(float(retry_after), 30.0)) if retry_after and retry_after.isdigit() else POLL_S
