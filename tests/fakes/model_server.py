"""A scripted model server on the loopback interface, whose log a test can wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from parallax_cli.mock_endpoint import Call, Mock, create_mock, serving
from parallax_cli.mock_script import Rule, Script, Step

PATIENCE_S = 30.0
"""For loaded machines; nothing waits this long when all is well."""


@dataclass(slots=True, eq=False)
class ModelServer:
    """A running server."""

    mock: Mock
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def calls(self) -> Sequence[Call]:
        """Every call, in order of arrival."""
        return tuple(self.mock.calls)

    async def until(self, condition: Callable[[Sequence[Call]], bool]) -> None:
        """Wait until the log fulfils a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self.calls):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def model_server(script: Script | Step | None = None, *more: Step) -> AsyncIterator[ModelServer]:
    """Serve a script, or steps that every prompt goes through."""
    if isinstance(script, Step):
        script = Script(rules=(Rule(steps=(script, *more)),))
    changed = asyncio.Event()
    app = create_mock(script, changed.set)
    server = ModelServer(app.state.mock, _changed=changed)
    async with serving(app) as server.url:
        yield server
