"""What every page shares: problems as pages, and the headers that forbid what is not a file of ours."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.responses import HTMLResponse, Response

from parallax.errors import UnavailableError
from results.api.access import Api
from results.api.problems import RETRY_AFTER_S, ApiError, Kind
from results.web.rendering import render

_POLICY: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
}


class PageRoute(APIRoute):
    """A route whose problems are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its problems rendered."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ApiError as error:
                return _problem(error.kind, error.detail, error.headers)
            except (RequestValidationError, ValidationError):
                return _problem(Kind.INVALID_REQUEST, "A part of the address is wrong.", {})
            except UnavailableError:
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                return _problem(Kind.UNAVAILABLE, "The database cannot be reached just now.", headers)

        return handle


def html(api: Api, template: str, **values: object) -> Response:
    """A page."""
    simulated = [name for name, region in api.catalog.regions.items() if region.simulated]
    return HTMLResponse(render(template, simulated=simulated, **values), headers=_POLICY)


def given(request: Request, name: str) -> list[str]:
    """The values of a parameter; a form sends an empty one for what was not chosen."""
    return [value for value in request.query_params.getlist(name) if value]


def _problem(kind: Kind, detail: str, headers: dict[str, str]) -> Response:
    body = render("problem.html", title=kind.title, detail=detail, here=None, simulated=[])
    return HTMLResponse(body, status_code=kind.status, headers={**_POLICY, **headers})
