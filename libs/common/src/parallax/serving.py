"""An HTTP server as a part of a process: it serves while a block runs, and leaves the process's signals alone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from parallax.errors import UnavailableError


@asynccontextmanager
async def serving(config: uvicorn.Config, listening: socket.socket, *, abrupt: bool = False) -> AsyncIterator[None]:
    """The configured application answers on a socket from the start of the block to its end.

    At the end requests in flight get the configuration's ``timeout_graceful_shutdown``; with ``abrupt`` nothing is
    waited for at all.

    Raises:
        UnavailableError: The application did not start.
    """
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]), name="http server")
    up = asyncio.create_task(server.up.wait())
    try:
        await asyncio.wait((task, up), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield
    finally:
        up.cancel()
        server.should_exit = True
        server.force_exit = abrupt
        await task


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        try:
            await super().startup(sockets=sockets)
        except SystemExit as error:  # it would end the whole process, with nothing left in order
            raise UnavailableError("the HTTP server's application did not start") from error
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change nothing."""
        yield
