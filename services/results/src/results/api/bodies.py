"""Reads request bodies: one JSON document, bounded, with every fault reported as a problem."""

import json
from typing import Final, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from parallax.contracts import intake
from parallax.contracts.job import MAX_JOB_BYTES
from results.api.negotiation import require_json
from results.api.problems import ApiError, Kind, Place, clean, place_of
from results.api.requests import Request as RequestModel

SMALL_BODY_BYTES: Final = 64 * 1024
"""Enough for every body but a job's."""

Model = TypeVar("Model", bound=RequestModel)


async def job_document(request: Request) -> bytes:
    """A request's body as it was sent: a JSON document that is still to be read and checked.

    Raises:
        ApiError: It is too large, or is not sent as JSON.
    """
    require_json(request)
    return await _body(request, MAX_JOB_BYTES)


async def optional(request: Request, model: type[Model]) -> Model:
    """A small body, or the model's defaults when there is none.

    Raises:
        ApiError: It is too large, is not sent as JSON or is none, gives a key twice, or a field is wrong.
    """
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return model()
    return await required(request, model)


async def required(request: Request, model: type[Model]) -> Model:
    """A small body.

    Raises:
        ApiError: It is too large, is not sent as JSON, is none, or a field is wrong.
    """
    require_json(request)
    body = await _body(request, SMALL_BODY_BYTES)
    try:
        content, repeated, _ = intake.parse(body)
    except intake.NotJsonError as error:
        raise ApiError(Kind.INVALID_JSON, str(error)) from error
    if repeated:
        raise ApiError(Kind.INVALID_REQUEST, "a key is given twice", errors=[place_of(each) for each in repeated])
    try:
        return model.model_validate_json(json.dumps(content, ensure_ascii=False).encode(errors="replace"))
    except ValidationError as error:
        places = [Place(message=clean(e["msg"]), pointer=clean(intake.pointer(e["loc"]))) for e in error.errors()]
        raise ApiError(Kind.INVALID_REQUEST, f"{len(places)} part(s) of the body are wrong", errors=places) from error


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body; nothing beyond ``max_bytes`` is kept, whatever the client announces."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect as error:
        raise ApiError(Kind.INVALID_JSON, "the client went away before the body was complete") from error
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(Kind.TOO_LARGE, f"the body is larger than {max_bytes} bytes", headers={"Connection": "close"})
