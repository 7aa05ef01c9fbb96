"""What every service process does around its own work: settings, signals, HTTP side, and giving up in time.

A service's ``__main__`` reads top to bottom: connect (``reach``), enter the service's ``running`` context, serve
its HTTP side, then ``watch`` until it is told to stop or can no longer work. Leaving the contexts drains.
"""

import asyncio
import gc
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from parallax.contracts.installation import Liveness, Readiness
from parallax.errors import InvalidInputError, UnavailableError
from parallax.health import Health
from parallax.serving import serving
from parallax.telemetry import configure_logging, get_logger
from parallax.watchdog import EXIT_INTERNAL, LastResort, Unready

EXIT_INVALID: Final = 2
EXIT_UNREACHABLE: Final = 4

PROBE_INTERVAL_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
CLOSE_LIMIT_S: Final = 5.0
"""For closing one connection to a server; one that is away would be waited for in vain."""
GIVE_UP_WITHIN_S: Final = 6.0
"""From giving up to the end: what could still be handed over needs the server that has been away for minutes."""
ENDS_WITHIN_S: Final = 60.0
"""From a signal to the end, unless the service says otherwise."""
CLOSING_S: Final = 25.0
"""What a service may take to end besides its grace: the HTTP side 5 s, its connections ``CLOSE_LIMIT_S`` each,
what is left behind ``CLOSE_LIMIT_S``."""

T = TypeVar("T")


class HttpAddress(NamedTuple):
    """Where a service listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What every service reads from its environment."""

    amqp_url: str
    database: str
    """Its URL; empty for a service without tables."""
    namespace: str
    catalog: Path
    http: HttpAddress | None
    log_format: str
    lost_after_s: float
    """A service that could not do its work for so long exits, to be restarted."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, database: bool) -> "ProcessSettings":
        """Read and check the settings.

        Raises:
            InvalidInputError: A variable is missing or wrong; the message names it and says what is expected.
        """
        log_format = environment.get("PARALLAX_LOG", "human" if sys.stderr.isatty() else "json")
        if log_format not in ("json", "human"):
            raise InvalidInputError(f"PARALLAX_LOG: {log_format!r} is not a format; expected json or human")
        return cls(
            amqp_url=required(environment, "PARALLAX_AMQP_URL", "amqp://USER:PASSWORD@HOST:5672/"),
            database=required(environment, "PARALLAX_DATABASE_URL", "postgresql://USER@HOST/NAME") if database else "",
            namespace=environment.get("PARALLAX_NAMESPACE", "parallax"),
            catalog=Path(required(environment, "PARALLAX_CATALOG", "the path of the catalog file")),
            http=http_address(environment["PARALLAX_HTTP"]) if environment.get("PARALLAX_HTTP") else None,
            log_format=log_format,
            lost_after_s=positive_number(environment, "PARALLAX_LOST_AFTER_S", 120.0),
        )


def secret(environment: Mapping[str, str], name: str) -> str | None:
    """A value from the variable ``name``, or from the file that ``name``_FILE points to.

    Raises:
        InvalidInputError: The file cannot be read.
    """
    if environment.get(name):
        return environment[name]
    file = environment.get(f"{name}_FILE")
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidInputError(f"{name}_FILE: {file} cannot be read: {error.strerror}") from error


def required(environment: Mapping[str, str], name: str, expected: str) -> str:
    """A value that a service cannot do without.

    Raises:
        InvalidInputError: It is not given.
    """
    value = secret(environment, name)
    if not value:
        raise InvalidInputError(f"{name} is not set; expected {expected} (or a file named by {name}_FILE)")
    return value


def positive_number(environment: Mapping[str, str], name: str, default: float) -> float:
    """A number above zero.

    Raises:
        InvalidInputError: It is something else.
    """
    text = environment.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidInputError(f"{name}: {text!r} is not a number above 0")
    return value


def positive_integer(environment: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    """A whole number from 1 to ``most``.

    Raises:
        InvalidInputError: It is something else.
    """
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise InvalidInputError(f"{name}: {text!r} is not a whole number from 1 to {most}")
    return int(text)


def http_address(text: str) -> HttpAddress:
    """The host and port in ``HOST:PORT``.

    Raises:
        InvalidInputError: The text is something else.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidInputError(f"PARALLAX_HTTP: {text!r} is not HOST:PORT, for example 127.0.0.1:8080")
    return HttpAddress(host.strip("[]"), int(port))


class Process:
    """The running process: when to stop, and for how long work may be impossible.

    ``ends_within_s`` bounds the time from a signal to the end. Whatever hangs then, in whichever library, is cut off.
    """

    def __init__(self, name: str, lost_after_s: float, *, ends_within_s: float = ENDS_WITHIN_S) -> None:
        self.stopping = asyncio.Event()
        self._starting: asyncio.Task[object] | None = asyncio.current_task()
        self._lost_after_s = lost_after_s
        self._ends_within_s = ends_within_s
        self._last_resort = LastResort(name)
        self._log = get_logger(name)

    def stop(self) -> None:
        """Stop: in an orderly way once the service runs, at once while it still starts."""
        self.stopping.set()
        self._last_resort.within(self._ends_within_s)
        if self._starting is not None:
            self._starting.cancel()

    def ended(self) -> None:
        """Everything is closed: nothing has to be cut off."""
        self._last_resort.cancel()

    async def reach(self, what: str, connect: Callable[[], Awaitable[T]]) -> T:
        """Connect, waiting for a server that is not there yet.

        Raises:
            UnavailableError: It was not there for too long, or the process is told to stop meanwhile.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._lost_after_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return await connect()
            except UnavailableError as error:
                if loop.time() + pause > give_up or self.stopping.is_set():
                    raise
                self._log.warning("waiting for a server", server=what, error=str(error))
            try:
                async with asyncio.timeout(pause * random.uniform(0.5, 1)):  # noqa: S311 - jitter, no secret
                    await self.stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, LONGEST_PAUSE_S)

    async def watch(self, health: Health) -> int:
        """Wait until the process is told to stop or has been unable to work for too long; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._starting = None
        settle()
        self._log.info("started")
        stopping = asyncio.create_task(self.stopping.wait(), name="wait for the signal to stop")
        unready = Unready(self._lost_after_s, longest_round_s=health.limit_s + 2 * PROBE_INTERVAL_S, at_s=loop.time())
        try:
            while not self.stopping.is_set():
                failing = await self._round(health, stopping, unready)
                if unready.too_long:
                    self._log.error("giving up", not_ready_for_s=self._lost_after_s, failing=failing)
                    self._last_resort.within(min(GIVE_UP_WITHIN_S, self._ends_within_s))
                    return EXIT_INTERNAL
        finally:
            stopping.cancel()
        self._log.info("stopping")
        return 0

    async def _round(self, health: Health, stopping: asyncio.Task[Any], unready: "Unready") -> list[str]:
        """Ask every probe and pause, unless the process is told to stop meanwhile."""
        check = asyncio.create_task(health.check(), name="check of health")
        await asyncio.wait((check, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not check.done():
            check.cancel()
            return []
        failing = health.lost(check.result())
        unready.judge(ready=not failing, at_s=asyncio.get_running_loop().time())
        if not unready.too_long:
            await asyncio.wait((stopping,), timeout=PROBE_INTERVAL_S)
        return failing

    async def close(self, what: str, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close something, and leave it behind when that takes longer than ``CLOSE_LIMIT_S``."""
        closing = asyncio.create_task(close(), name=f"close {what}")
        await asyncio.wait((closing,), timeout=CLOSE_LIMIT_S)
        if not closing.done():
            self._log.warning("not closed in time", what=what, limit_s=CLOSE_LIMIT_S)
            return  # cancelled, it could go on to wait for the same server
        if closing.exception() is not None:
            self._log.warning("not closed in good order", what=what, error=repr(closing.exception()))


def settle() -> None:
    """Leave what a process has loaded out of later garbage collections: it lives as long as the process.

    A full collection walks through every object, with nothing else running: 100 ms of each process on a small machine.
    """
    gc.collect()
    gc.freeze()


def run(name: str, main: Callable[[Mapping[str, str]], Awaitable[int]]) -> int:
    """Run a service until it ends and return its exit code; every expected failure is one line on stderr."""
    last_resort = LastResort(name)
    try:
        return asyncio.run(_main(name, main, last_resort))
    finally:
        last_resort.cancel()


async def _main(name: str, main: Callable[[Mapping[str, str]], Awaitable[int]], last_resort: LastResort) -> int:
    try:
        return await main(os.environ)
    except asyncio.CancelledError:
        return 0
    except InvalidInputError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return EXIT_INVALID
    except UnavailableError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return EXIT_UNREACHABLE
    finally:
        # What was left behind may not end when it is cancelled, and ``asyncio.run`` waits for all of it.
        last_resort.within(CLOSE_LIMIT_S)


@contextmanager
def started(name: str, settings: ProcessSettings, *, ends_within_s: float = ENDS_WITHIN_S) -> Iterator[Process]:
    """Set up logging, and turn SIGTERM and SIGINT into ``stopping``; needs a running event loop."""
    configure_logging("json" if settings.log_format == "json" else "human")
    process = Process(name, settings.lost_after_s, ends_within_s=ends_within_s)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    try:
        yield process
    finally:
        process.ended()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def probe_routes(health: Health) -> APIRouter:
    """``/livez`` (the process answers), ``/readyz`` (it can do its work), ``/metrics`` (Prometheus text)."""
    router = APIRouter(tags=["operation"])

    @router.get("/livez")
    async def livez() -> Liveness:
        return Liveness()

    @router.get("/readyz")
    async def readyz(response: Response) -> Readiness:
        readiness = Readiness.of(await health.check())
        response.status_code = readiness.status_code
        return readiness

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def probe_app(health: Health) -> FastAPI:
    """The HTTP side of a service that has no API of its own."""
    app = FastAPI(openapi_url=None)
    app.include_router(probe_routes(health))
    return app


@asynccontextmanager
async def http_server(app: FastAPI, address: HttpAddress | None) -> AsyncIterator[None]:
    """Serve an application while the block runs; without an address do nothing.

    Raises:
        InvalidInputError: The address cannot be listened on.
        UnavailableError: The application did not start.
    """
    if address is None:
        yield
        return
    config = uvicorn.Config(
        app, host=address.host, port=address.port, log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    try:
        listening = config.bind_socket()
    except SystemExit as error:  # uvicorn's way to say that the address is taken
        raise InvalidInputError(f"PARALLAX_HTTP: cannot listen on {address.host}:{address.port}") from error
    async with serving(config, listening):
        yield
