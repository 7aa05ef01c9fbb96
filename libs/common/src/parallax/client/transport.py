"""HTTP as the client speaks it: one connection pool, and every failure as one of Parallax's own errors."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from parallax.client.errors import AccessDeniedError, ConflictError, NotFoundError
from parallax.contracts.messages import Problem
from parallax.errors import InvalidInputError, InvalidJobError, UnavailableError

T = TypeVar("T", bound=BaseModel)

TIMEOUT_S: Final = 30.0
"""Reads of the API answer in milliseconds; a submission of 15 MB may take a while to check."""
STREAM_SILENCE_S: Final = 60.0
"""A stream that says nothing for this long, not even a ping (sent every 15 s), is broken."""
MAX_PROBLEM_BYTES: Final = 1024 * 1024
"""How much of an error's body is read."""


class Transport:
    """Requests to one installation."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        socket: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        try:
            base = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise InvalidInputError(f"API address {url!r}: is not a URL; expected http://HOST:PORT") from error
        if base.scheme not in {"http", "https"} or not base.host:
            raise InvalidInputError(f"API address {url!r}: is not a URL; expected http://HOST:PORT")
        self.url = str(socket) if socket else str(base)
        if transport is None and socket is not None:
            transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self._http = httpx.AsyncClient(
            base_url=base,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def get(self, answer: type[T], path: str, params: Mapping[str, Any] | None = None) -> T:
        """What is at a path."""
        return self.parse(answer, await self._request("GET", path, params=_given(params)))

    async def finished(
        self, progress: type[T], path: str, params: Mapping[str, Any], on_progress: Callable[[T], None]
    ) -> bytes:
        """What is at a path, asked for again and again while the service answers how far it is with it (202)."""
        while True:
            try:
                response = await self._http.request("GET", path, params=_given(params))
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            if response.status_code == httpx.codes.ACCEPTED:
                on_progress(self.parse(progress, response.content))
            elif response.is_success:
                return response.content
            else:
                raise self._refusal(response.status_code, response.content)

    async def post(self, answer: type[T], path: str, body: bytes, *, headers: Mapping[str, str] | None = None) -> T:
        """What answers a posted JSON document."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self.parse(answer, await self._request("POST", path, content=body, headers=headers))

    def parse(self, answer: type[T], body: bytes) -> T:
        """The document in an answer.

        Raises:
            UnavailableError: It is none of Parallax's.
        """
        try:
            return answer.model_validate_json(body, extra="ignore")
        except ValidationError as error:
            raise UnavailableError(f"{self.url}: the answer is not one of Parallax's API") from error

    async def _request(self, method: str, path: str, **arguments: Any) -> bytes:
        try:
            response = await self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response.content
        raise self._refusal(response.status_code, response.content)

    @asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, Any] | None = None, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """A response that is read while it arrives; a failure inside the block is ours too."""
        timeout = httpx.Timeout(TIMEOUT_S, read=STREAM_SILENCE_S)
        try:
            async with self._http.stream(
                "GET", path, params=_given(params), headers=dict(headers or {}), timeout=timeout
            ) as response:
                if not response.is_success:
                    raise self._refusal(response.status_code, await _bounded(response))
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> UnavailableError:
        return UnavailableError(f"{self.url} cannot be reached: {str(error) or type(error).__name__}")

    def _refusal(self, status: int, body: bytes) -> Exception:
        """The error that a problem document (RFC 9457) or any other failed answer stands for."""
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        problem = document if isinstance(document, dict) else {}
        detail = str(problem.get("detail") or problem.get("title") or f"answered with HTTP status {status}")
        places = problem.get("errors")
        if status == 422 and isinstance(places, list) and any(_pointer(place) is not None for place in places):
            return InvalidJobError([_problem(place) for place in places if isinstance(place, dict)])
        match status:
            case 401 | 403:
                return AccessDeniedError(f"{self.url}: {detail}")
            case 404:
                return NotFoundError(detail)
            case 409:
                return ConflictError(detail)
            case _ if status < 500:
                return InvalidInputError(f"{self.url}: {detail}{_parameters(places)}")
            case _:
                reference = problem.get("request_id")
                return UnavailableError(f"{self.url}: {detail}" + (f" (request {reference})" if reference else ""))


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


async def _bounded(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_PROBLEM_BYTES:
            break
    return body


def _pointer(place: object) -> str | None:
    pointer = place.get("pointer") if isinstance(place, dict) else None
    return pointer if isinstance(pointer, str) else None


def _problem(place: Mapping[str, Any]) -> Problem:
    allowed = place.get("allowed")
    return Problem(
        pointer=_pointer(place) or "",
        message=str(place.get("message", "is wrong")),
        allowed=str(allowed) if allowed is not None else None,
    )


def _parameters(places: object) -> str:
    """What a problem says about single query parameters."""
    if not isinstance(places, list):
        return ""
    known = [place for place in places if isinstance(place, dict) and place.get("parameter")]
    said = [f"{place['parameter']}: {place.get('message', 'is wrong')}" for place in known]
    return ": " + "; ".join(said) if said else ""
