"""Calls an OpenAI-compatible server: vLLM, llama.cpp, or anybody's that speaks chat completions.

Answers are always streamed, so that closing the connection is what aborts a generation: a cancelled task unwinds
through httpx, which closes the connection before anything else happens.
"""

import asyncio
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx

from executor.endpoints.answers import AnswerParts, MalformedError, StreamedError
from executor.endpoints.failures import connection_failure, status_failure
from executor.endpoints.port import CallTrace, EndpointError, ModelAnswer, ModelRequest
from executor.endpoints.sse import EventParser
from parallax.contracts.messages import ErrorInfo

if importlib.util.find_spec("sniffio") is None:
    # httpcore looks for this optional package several times a request, and Python searches the whole path each time
    # that it is not found (0.4 ms); this entry is Python's own way of saying "known to be missing".
    sys.modules["sniffio"] = None  # type: ignore[assignment]

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
        self._url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
        self._stall_timeout_s = stall_timeout_s
        self.versions: Mapping[str, str] = {"httpx": importlib.metadata.version("httpx")}
        self._client = httpx.AsyncClient(
            headers={"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity", **(headers or {})},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            # The executor's budget bounds the calls; a second bound here could only make them wait unseen.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S),
            follow_redirects=False,
            trust_env=False,
        )

    async def call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        """Ask once; see the port."""
        try:
            return await self._call(request, trace)
        except httpx.HTTPError as error:
            raise connection_failure(error, trace.http_status) from error
        except MalformedError as error:
            info = ErrorInfo(error_class="protocol", code="malformed_answer", message=str(error), retryable=True)
            raise EndpointError(info, http_status=trace.http_status) from error
        except StreamedError as error:
            raise status_failure(error.status or 500, str(error), None, streamed=True) from error

    async def close(self) -> None:
        """Release connections."""
        await self._client.aclose()

    async def _call(self, request: ModelRequest, trace: CallTrace) -> ModelAnswer:
        outgoing = self._client.build_request(
            "POST",
            self._url,
            content=_body(request),
            headers={
                "Content-Type": "application/json",
                "X-Request-Id": f"{request.execution_id}/{request.attempt}",
            },
        )
        for _ in range(MAX_REDIRECTS):
            async with self._sent(outgoing) as response:
                trace.http_status = response.status_code
                trace.region_observed = response.headers.get("x-region") or trace.region_observed
                if response.status_code == 200:
                    return await self._read(response, trace)
                body = await _read_error(response)
                if response.status_code != 303 or "location" not in response.headers:
                    raise status_failure(response.status_code, body, response.headers.get("retry-after"))
                outgoing = self._result_request(response)
            await asyncio.sleep(_poll_s(response.headers.get("retry-after")))
        info = ErrorInfo(error_class="protocol", code="too_many_redirects", message="303 without end", retryable=False)
        raise EndpointError(info, http_status=303)

    @asynccontextmanager
    async def _sent(self, outgoing: httpx.Request) -> AsyncIterator[httpx.Response]:
        response = await self._client.send(outgoing, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    def _result_request(self, response: httpx.Response) -> httpx.Request:
        """The call still runs; its result will be where the server points, and only there on the same server."""
        target = response.url.join(response.headers["location"])
        if (target.scheme, target.host, target.port) != (self._url.scheme, self._url.host, self._url.port):
            message = f"refused to follow a redirect to another server ({target.host!r:.200})"
            info = ErrorInfo(error_class="protocol", code="foreign_redirect", message=message, retryable=False)
            raise EndpointError(info, http_status=response.status_code)
        return self._client.build_request("GET", target)

    async def _read(self, response: httpx.Response, trace: CallTrace) -> ModelAnswer:
        parts = AnswerParts()
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        silence = asyncio.timeout(None)
        try:
            async with silence:
                if streamed:
                    await self._read_events(response, parts, trace, silence)
                else:
                    await self._read_document(response, parts, trace, silence)
        except TimeoutError as error:
            if not silence.expired():
                raise
            if not parts.done:
                message = f"no part of the answer arrived for {self._stall_timeout_s:g} s in mid-stream"
                info = ErrorInfo(error_class="timeout", code="stall_timeout_s", message=message, retryable=True)
                raise EndpointError(info, http_status=response.status_code) from error
        trace.provider_call_id = trace.provider_call_id or parts.call_id
        return parts.answer()

    async def _read_events(
        self, response: httpx.Response, parts: AnswerParts, trace: CallTrace, silence: asyncio.Timeout
    ) -> None:
        """Read to the end of the body, also behind ``[DONE]``: only a response read to its end frees its connection."""
        loop = asyncio.get_running_loop()
        parser = EventParser()
        size_bytes = 0
        async for chunk in response.aiter_bytes():
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
        self, response: httpx.Response, parts: AnswerParts, trace: CallTrace, silence: asyncio.Timeout
    ) -> None:
        loop = asyncio.get_running_loop()
        body = bytearray()
        async for chunk in response.aiter_bytes():
            trace.first_byte()
            silence.reschedule(loop.time() + self._stall_timeout_s)
            body += chunk
            if len(body) > MAX_STREAM_BYTES:
                raise MalformedError(f"the answer is larger than {MAX_STREAM_BYTES} bytes")
        parts.add_whole(bytes(body))


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


async def _read_error(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= MAX_ERROR_BYTES:
            break
    return bytes(body[:MAX_ERROR_BYTES])


def _poll_s(retry_after: str | None) -> float:
    return max(POLL_S, min(float(retry_after), 30.0)) if retry_after and retry_after.isdigit() else POLL_S
