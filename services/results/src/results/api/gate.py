"""What every request passes first: an id, guards against other sites' pages, counting, and the last catch."""

import ipaddress
import re
import time
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallax.telemetry import get_logger
from results.api.problems import Kind, request_id, respond
from results.api.settings import ApiSettings

MAX_URL_CHARS: Final = 32_768
"""Path and query together: every filter at its longest fits."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")
"""A client's own request id is kept when it is safe in headers and logs."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log = get_logger(__name__)


class ApiMetrics:
    """Counters of the API in a registry of its own, so that several applications can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "parallax_api_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "parallax_api_request_seconds", "Time to the start of the answer.", ["route"], registry=self.registry
        )
        self.denied = Counter("parallax_api_denied", "Requests denied.", ["reason"], registry=self.registry)


class Gate:
    """The outermost middleware of the API. Nothing an exception says leaves the service through it."""

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, metrics: ApiMetrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["parallax.request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        request = Request(scope, receive)
        response_begins = _Beginning(scope, send, self._metrics)
        refusal = self._refusal(request)
        if refusal is not None:
            await refusal(scope, receive, response_begins)
            return
        try:
            await self._app(scope, receive, response_begins)
        except Exception as error:  # noqa: BLE001 - whatever failed, the client gets a problem and no details
            _log.error("request_failed", path=request.url.path, request_id=request_id(request), exc_info=error)
            if not response_begins.started:
                answer = respond(request, Kind.INTERNAL, "the service's log has more under the request id")
                await answer(scope, receive, response_begins)

    def _refusal(self, request: Request) -> Response | None:
        if len(request.scope["path"]) + len(request.scope["query_string"]) > MAX_URL_CHARS:
            return respond(request, Kind.TOO_LARGE, f"path and query are longer than {MAX_URL_CHARS}", status=414)
        if not self._host_is_ours(request.headers.get("host", "")):
            self._denied(request, "host")
            detail = "call this service by an address, or name the host in PARALLAX_ALLOWED_HOSTS"
            return respond(request, Kind.FORBIDDEN_HOST, detail)
        if request.method not in _SAFE_METHODS and self._is_cross_site(request):
            self._denied(request, "cross_site")
            return respond(request, Kind.CROSS_SITE, "the Origin header names another site")
        return None

    def _denied(self, request: Request, reason: str) -> None:
        self._metrics.denied.labels(reason).inc()
        _log.warning("request_denied", reason=reason, path=request.url.path, request_id=request_id(request))

    def _host_is_ours(self, header: str) -> bool:
        """Whether a page of another site could not have been led here by a name that it controls (DNS rebinding).

        Only a name with a dot can belong to such a site; with keys required the rule guards nothing more.
        """
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if self._settings.require_keys or "." not in name or name in self._settings.allowed_hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_cross_site(self, request: Request) -> bool:
        """Whether a browser says that another site's page sends this (forged requests)."""
        origin = request.headers.get("origin")
        if origin is None:
            return request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}
        if origin in self._settings.cors_origins:
            return False
        try:
            return urlsplit(origin).netloc != request.headers.get("host", "")
        except ValueError:
            return True


class _Beginning:
    """Adds headers to the start of a response and counts it."""

    def __init__(self, scope: Scope, send: Send, metrics: ApiMetrics) -> None:
        self._scope = scope
        self._send = send
        self._metrics = metrics
        self._began = time.perf_counter()
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._scope["parallax.request_id"]
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
            route = getattr(self._scope.get("route"), "path", "none")
            method = self._scope["method"] if self._scope["method"].isalpha() else "other"
            self._metrics.requests.labels(method[:16], route, str(message["status"])).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - self._began)
        await self._send(message)
