"""Serves an application on a Unix socket that only its owner can open: no port, no key."""

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from parallax.serving import serving as serving_http

SHUTDOWN_S: Final = 1
"""What requests in flight get when the process ends; their clients end with it."""


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


def serving(app: FastAPI, listening: socket.socket) -> AbstractAsyncContextManager[None]:
    """The application answers while the block runs."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=SHUTDOWN_S)
    return serving_http(config, listening)
