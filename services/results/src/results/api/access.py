"""Who may do what: reads the key of a request and checks its scope. Every denial is logged and counted."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBasic, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.port import Bus
from parallax.catalog import Catalog
from parallax.clock import Clock
from parallax.health import Health
from parallax.telemetry import get_logger
from parallax.worker.process import Worker
from results.api import keys
from results.api.comparisons import Comparisons
from results.api.gate import ApiMetrics
from results.api.keys import Scope
from results.api.problems import ApiError, Kind, request_id
from results.api.queries.summaries import Aggregates
from results.api.settings import ApiSettings
from results.api.streams import Streams

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="parallax", Basic realm="parallax", charset="UTF-8"'}
"""Programs send the key as a bearer token; browsers ask for it as the password of any user name."""
ANONYMOUS: Final = "anonymous"
"""Whoever uses an installation that needs no keys."""

_BEARER: Final = HTTPBearer(auto_error=False, scheme_name="bearer", description="A key made by `parallax keys create`.")
_BASIC: Final = HTTPBasic(auto_error=False, scheme_name="basic", description="Any user name; the key as password.")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Api:
    """What the handlers work with; made once by ``create_api``."""

    engine: AsyncEngine
    bus: Bus
    catalog: Catalog
    clock: Clock
    settings: ApiSettings
    metrics: ApiMetrics
    streams: Streams
    aggregates: Aggregates
    comparisons: Comparisons
    health: Health
    worker: Worker
    """Checks large jobs."""


async def api_of(request: Request) -> Api:
    """The application's parts, for ``Depends``. Asynchronous, as a plain function would be run in a thread."""
    api: Api = request.app.state.api
    return api


ApiParts = Annotated[Api, Depends(api_of)]


def requires(scope: Scope) -> Callable[..., Awaitable[str]]:
    """A dependency that lets pass whoever has this scope, and gives the id of the key."""

    async def check(
        request: Request,
        api: ApiParts,
        _bearer: Annotated[object, Security(_BEARER)],
        _basic: Annotated[object, Security(_BASIC)],
    ) -> str:
        if not api.settings.require_keys:
            return ANONYMOUS
        key = _key_of(request.headers.get("authorization", ""))
        if key is None:
            raise _denied(request, api, Kind.UNAUTHENTICATED, "missing")
        verified = await keys.verify(api.engine, key, now=api.clock.now())
        if isinstance(verified, keys.Refused):
            raise _denied(request, api, Kind.UNAUTHENTICATED, verified.reason)
        if not verified.scope.allows(scope):
            raise _denied(request, api, Kind.FORBIDDEN, "scope", key_id=verified.key_id)
        return verified.key_id

    return check


Reader = Depends(requires(Scope.READ))
"""What every resource that only reads depends on."""


def _key_of(header: str) -> str | None:
    scheme, _, value = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip() or None
        case "basic":
            try:
                pair = base64.b64decode(value.strip(), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
            return pair.partition(":")[2] or None
        case _:
            return None


def _denied(request: Request, api: Api, kind: Kind, reason: str, *, key_id: str | None = None) -> ApiError:
    api.metrics.denied.labels(reason).inc()
    _log.warning(
        "request_denied",
        reason=reason,
        key_id=key_id,
        method=request.method,
        path=request.url.path,
        client=request.client.host if request.client else None,
        request_id=request_id(request),
    )
    if kind is Kind.FORBIDDEN:
        return ApiError(kind, "the scope of the key does not cover this request")
    return ApiError(kind, "send a valid key as bearer token, or as password of any user", headers=_CHALLENGE)
