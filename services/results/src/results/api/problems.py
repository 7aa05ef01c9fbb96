"""Every error of the API as an RFC 9457 problem: a stable type, the request id, and where in the request it lies."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from parallax.contracts import intake
from parallax.contracts.messages import Problem as JobProblem
from parallax.contracts.model import Strict
from parallax.errors import UnavailableError
from parallax.telemetry import get_logger

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:parallax:problem:"
"""Problem types are names, not addresses: they stay the same wherever the documentation lives."""
RETRY_AFTER_S: Final = 5
"""What a client is told to wait while the database or the broker is away."""
MAX_SHOWN_CHARS: Final = 200
"""How much of a client's own text an error repeats."""

_log = get_logger(__name__)


class Kind(Enum):
    """The kinds of problems; the name in lower case with dashes is the last part of its type."""

    INVALID_REQUEST = (422, "The request is not valid")
    INVALID_JOB = (422, "The job is not valid")
    INVALID_CURSOR = (422, "The cursor is not valid here")
    INVALID_JSON = (400, "The body is not a JSON document")
    FORBIDDEN_HOST = (400, "The Host header names another machine")
    UNAUTHENTICATED = (401, "A key is needed")
    FORBIDDEN = (403, "The key does not allow this")
    CROSS_SITE = (403, "Requests from other sites are refused")
    NOT_FOUND = (404, "There is no such thing")
    METHOD_NOT_ALLOWED = (405, "The method is not allowed here")
    NOT_ACCEPTABLE = (406, "None of the accepted media types can be produced")
    CONFLICT = (409, "The id belongs to another job")
    NOTHING_TO_RETRY = (409, "No execution of the job matches")
    NOT_RETRYABLE = (409, "The job cannot be retried now")
    NOTHING_TO_COMPARE = (409, "There is nothing to compare yet")
    NOT_JUDGEABLE = (409, "Only a completed execution can be judged")
    TOO_LARGE = (413, "The request is too large")
    UNSUPPORTED_MEDIA_TYPE = (415, "The body has a media type that is not read here")
    TOO_MANY_STREAMS = (503, "Too many event streams are open")
    TOO_MANY_COMPARISONS = (503, "Too many comparisons are being computed")
    UNAVAILABLE = (503, "A server this service needs is away")
    FORMAT_UNAVAILABLE = (406, "This installation cannot write that format")
    INTERNAL = (500, "Something went wrong in the service")
    OTHER = (400, "The request cannot be answered")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def title(self) -> str:
        """The same short sentence for every problem of the kind."""
        return self.value[1]

    @property
    def type(self) -> str:
        """The stable URI of the kind."""
        return TYPE_PREFIX + self.name.lower().replace("_", "-")


class Place(Strict):
    """One thing that is wrong: in the body (``pointer``, RFC 6901) or in a parameter."""

    message: str
    pointer: str | None = None
    parameter: str | None = None
    allowed: str | None = None


class ProblemDetails(Strict):
    """An RFC 9457 problem."""

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    instance: str
    """The path of the request."""
    request_id: str
    """The same as in the header ``X-Request-Id`` and in the service's log."""
    errors: tuple[Place, ...] = ()


class ApiError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self, kind: Kind, detail: str, *, errors: Iterable[Place] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def invalid_parameter(name: str, message: str, allowed: str | None = None) -> ApiError:
    """The problem of one query parameter that only the handler could judge."""
    place = Place(message=message, parameter=name, allowed=allowed)
    return ApiError(Kind.INVALID_REQUEST, f"{name}: {message}", errors=[place])


def invalid_job(problems: Sequence[JobProblem]) -> ApiError:
    """The problem of a job that breaks rules, with every place."""
    places = [place_of(problem) for problem in problems]
    return ApiError(Kind.INVALID_JOB, f"{len(places)} rule(s) of a job are broken", errors=places)


def place_of(problem: JobProblem) -> Place:
    """A problem of a document as the API says it."""
    return Place(message=clean(problem.message), pointer=clean(problem.pointer), allowed=problem.allowed)


def job_not_found(job_id: str) -> ApiError:
    """No job of this id is known."""
    return ApiError(Kind.NOT_FOUND, f"no job {job_id[:MAX_SHOWN_CHARS]!r} is known")


def clean(text: str) -> str:
    """The text without lone surrogates, which no JSON response can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def respond(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    status: int | None = None,
    errors: Iterable[Place] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The problem as a response."""
    code = status or kind.status
    title = kind.title if kind is not Kind.OTHER else HTTPStatus(code).phrase
    document = ProblemDetails(
        type=kind.type,
        title=title,
        status=code,
        detail=clean(detail),
        instance=clean(request.url.path[:MAX_SHOWN_CHARS]),
        request_id=request_id(request),
        errors=tuple(errors),
    )
    body = document.model_dump_json(exclude_none=True).encode()
    return Response(body, status_code=code, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def request_id(request: Request) -> str:
    """The id the outermost middleware gave to the request."""
    return str(request.scope.get("parallax.request_id", "-"))


def install(app: FastAPI) -> None:
    """Answer every exception of the application with a problem."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(Exception, _internal)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(request, error.kind, error.detail, errors=error.errors, headers=error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = [_place(details["loc"], details["msg"], details.get("ctx", {})) for details in error.errors()]
    return respond(request, Kind.INVALID_REQUEST, f"{len(places)} part(s) of the request are wrong", errors=places)


def _place(location: Sequence[str | int], message: str, context: Mapping[str, object]) -> Place:
    allowed = str(context["expected"]) if "expected" in context else None
    where, *rest = location
    if where == "body":
        return Place(message=clean(message), pointer=clean(intake.pointer(rest)), allowed=allowed)
    return Place(message=clean(message), parameter=clean(".".join(map(str, rest))), allowed=allowed)


_KIND_OF_STATUS: Final = {
    401: Kind.UNAUTHENTICATED,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    405: Kind.METHOD_NOT_ALLOWED,
    406: Kind.NOT_ACCEPTABLE,
    413: Kind.TOO_LARGE,
    415: Kind.UNSUPPORTED_MEDIA_TYPE,
}


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KIND_OF_STATUS.get(error.status_code, Kind.OTHER)
    detail = kind.title if kind is not Kind.OTHER else HTTPStatus(error.status_code).phrase
    headers = {**(error.headers or {}), **({"Allow": _allowed_methods(request)} if error.status_code == 405 else {})}
    return respond(request, kind, detail, status=error.status_code, headers=headers)


def _allowed_methods(request: Request) -> str:
    """Every method some route of the path has; the router itself tells only those of the first."""
    methods = ("GET", "POST")
    routes: Sequence[BaseRoute] = request.app.routes
    found = [m for m in methods if any(r.matches({**request.scope, "method": m})[0] is Match.FULL for r in routes)]
    return ", ".join(found)


async def _unavailable(request: Request, error: Exception) -> Response:
    _log.warning("request_unavailable", path=request.url.path, request_id=request_id(request), error=str(error))
    detail = "the database or the message broker cannot be reached just now; repeat the request later"
    return respond(request, Kind.UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


async def _internal(request: Request, error: Exception) -> Response:
    _log.error("request_failed", path=request.url.path, request_id=request_id(request), exc_info=error)
    return respond(request, Kind.INTERNAL, "the service's log has more under the request id")
