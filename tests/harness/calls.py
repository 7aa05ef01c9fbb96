"""Model servers that know which executor called, and the log of their calls."""

from collections.abc import Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from parallax_cli.mock_endpoint import Mock, create_mock
from parallax_cli.mock_script import Rule, Script, Step
from tests.harness.duplicates import ModelCall

DELAYS_MS: Final = (50, 100, 200, 350, 500)
SLOW_MS: Final = 4_000
"""An answer that takes about as long as executors wait between two heartbeats."""
_OWN: Final = ("v1", "health", "__log")
"""Where the model server's own paths begin."""


def script() -> Script:
    """Answers as slow as the question asks for; some questions fail at first."""
    return Script(
        models=("mock",),
        rules=(
            Rule(contains="flaky", steps=(Step(status=500, delay_s=0.05), Step(delay_s=0.1))),
            *(Rule(contains=f"delay {ms} ms", steps=(Step(delay_s=ms / 1000),)) for ms in (*DELAYS_MS, SLOW_MS)),
            Rule(contains="delay for ever", steps=(Step(stall_after=1),)),
        ),
    )


def model_server() -> Starlette:
    """A scripted model server; each executor reaches it under a path of its own, see :func:`path_of`."""
    app = create_mock(script())
    app.add_middleware(_Attributed)
    return app


def path_of(base_url: str, executor: str) -> str:
    """The base URL that one executor process calls."""
    return f"{base_url.removesuffix('/v1')}/{executor}/v1"


class _Attributed:
    """Takes the caller's name out of the path and adds it to the request id, which the model server logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            _, caller, *rest = scope["path"].split("/", 2)
            if caller not in _OWN and rest:
                headers = [
                    (name, value + f"/{caller}".encode() if name == b"x-request-id" else value)
                    for name, value in scope["headers"]
                ]
                scope = {**scope, "path": f"/{rest[0]}", "raw_path": f"/{rest[0]}".encode(), "headers": headers}
        await self._app(scope, receive, send)


def calls_of(servers: Mapping[str, Any]) -> list[ModelCall]:
    """Every call that the model servers of the regions saw.

    Raises:
        AssertionError: A server saw more calls than it remembers: nothing could be said about them.
    """
    return [call for region, app in servers.items() for call in _calls(region, app.state.mock)]


def _calls(region: str, mock: Mock) -> Iterable[ModelCall]:
    assert mock.received == len(mock.calls), f"{region}: {mock.received} calls, {len(mock.calls)} of them remembered"
    for call in mock.calls:
        if call.request_id:
            execution_id, attempt, *caller = call.request_id.split("/")
            yield ModelCall(
                region=region,
                execution_id=UUID(execution_id),
                executor=caller[0] if caller else "",
                attempt=int(attempt),
                received_at=call.received_at,
                begun=call.first_byte_at is not None,
                finished_at=call.finished_at,
                aborted_at=call.aborted_at,
                failed=call.status is not None and call.status != 200,
            )
