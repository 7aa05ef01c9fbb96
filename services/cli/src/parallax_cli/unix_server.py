"""Serves an application on a Unix socket that only its owner can open: no port, no key."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

SOCKET_URL: Final = "http://parallax"
"""The name in requests that go through a socket."""
SHUTDOWN_S: Final = 1
"""What requests in flight get when the process ends; their clients end with it."""


class _QuietServer(uvicorn.Server):
    """A server that leaves the process's signals alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change nothing."""
        yield


@contextmanager
def bound_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at ``path``, where a killed process may have left its own; removed at the end."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen()  # clients may connect from now on; they are answered as soon as the server runs
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


@asynccontextmanager
async def serving(app: FastAPI, listening: socket.socket) -> AsyncIterator[None]:
    """The application answers while the block runs."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=SHUTDOWN_S)
    server = _QuietServer(config)
    task = asyncio.create_task(server.serve(sockets=[listening]), name="api")
    try:
        yield
    finally:
        server.should_exit = True
        await task
