"""An HTTP server as a part of a process."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from parallax.errors import UnavailableError
from parallax.serving import serving

PATIENCE_S = 30.0


@contextmanager
def loopback() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, f"http://127.0.0.1:{listening.getsockname()[1]}"


def configured(app: FastAPI, *, grace_s: int = 1) -> uvicorn.Config:
    return uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=grace_s)


async def test_it_answers_from_the_first_line_of_the_block_and_leaves_signals_alone() -> None:
    app = FastAPI()
    app.add_api_route("/", lambda: "here")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with loopback() as (listening, url):
        async with serving(configured(app), listening), httpx.AsyncClient() as http:
            assert (await http.get(url)).json() == "here"
            assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_an_application_that_does_not_start_is_unavailable() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if app.title:
            raise RuntimeError("no")
        yield

    with loopback() as (listening, _), pytest.raises(UnavailableError, match="did not start"):
        async with asyncio.timeout(PATIENCE_S), serving(configured(FastAPI(lifespan=lifespan)), listening):
            pytest.fail("the block was entered")


async def test_an_abrupt_end_waits_for_no_request() -> None:
    app, arrived = FastAPI(), asyncio.Event()

    @app.get("/")
    async def never() -> None:
        arrived.set()
        await asyncio.Event().wait()

    with loopback() as (listening, url):
        async with httpx.AsyncClient(timeout=None) as http, asyncio.timeout(PATIENCE_S):
            async with serving(configured(app, grace_s=3_600), listening, abrupt=True):
                asking = asyncio.create_task(http.get(url))
                await arrived.wait()
            asking.cancel()
            await asyncio.wait({asking})
