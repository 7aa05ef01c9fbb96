"""All of Parallax in one process: memory bus, embedded PostgreSQL, a local model, and the services' own code.

Nothing here decides anything; it composes the services as separate processes would be, and serves their API on a
Unix socket in the home, so that the command reads a standalone home and a remote installation the same way.
What a killed process leaves behind is safe: the database is adopted by the next one, and since its memory bus is
known to be empty the dispatcher asks about every open batch at once, which finishes the jobs that were running.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import dispatcher.app
import dispatcher.settings
import executor.app
import executor.settings
import results.app
import results.settings
from executor.endpoints.factory import create_endpoint
from parallax.bus.memory import MemoryBroker, MemoryBus
from parallax.catalog import Catalog
from parallax.client import ParallaxClient
from parallax.clock import SystemClock
from parallax.db.embedded import embedded_postgres
from parallax.db.engine import create_engine
from parallax.errors import UnavailableError
from parallax_cli.adoption import adopt
from parallax_cli.home import HOME_URL, Home, HomeLock
from parallax_cli.local_model import LOCAL_ENDPOINT, local_model
from parallax_cli.schemas import migrate_all
from parallax_cli.unix_server import bound_socket, serving
from results.api.app import create_api
from results.api.settings import ApiSettings

HEARTBEAT_S: Final = 0.5
"""In one process heartbeats cost next to nothing, and the live view is as fresh as they are."""
HEARTBEAT_WAIT_S: Final = 30.0
"""It takes a moment; a machine so slow that this is not enough could not run a job either."""
GRACE_S: Final = 2.0
"""How long calls in flight may go on when the process ends; the rest is aborted and resumed by the next one."""
RECONCILE_AFTER_S: Final = 15.0
TIMER_S: Final = 0.5
POOL_SIZE: Final = 8
"""Connections per service: the dispatcher handles that many messages at once, and the recorder needs one of its own."""
LONGEST_SOCKET_PATH: Final = 100
"""The kernel takes about 104 bytes; a home deeper than that keeps its socket in the folder for temporary files."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a standalone installation runs with."""

    catalog: Catalog
    budget: int = 10
    """Calls at once, per region."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Where the keys of endpoints other than the local model's are found."""


@asynccontextmanager
async def reading(home: Home, lock: HomeLock, options: Options) -> AsyncIterator[Path]:
    """The database and the API alone: what was stored can be read, nothing runs.

    Yields:
        The Unix socket where the API answers.
    """
    async with _composing(home, options.catalog) as parts:
        yield await parts.serve_api(lock, await parts.engine("parallax-api"))


@asynccontextmanager
async def running(home: Home, lock: HomeLock, options: Options, *, executors: bool = True) -> AsyncIterator[Path]:
    """Every service at work; without ``executors`` no call is made, which is enough to cancel.

    Yields:
        The Unix socket where the API answers.

    Raises:
        UnavailableError: The database or the local model did not start.
        InvalidInputError: An endpoint of the catalog cannot be right.
    """
    async with _composing(home, options.catalog) as parts:
        await parts.start_results()
        if executors:
            parts.start_local_model()
        socket = await parts.serve_api(lock, await parts.engine("parallax-api"))
        if executors:
            for region in options.catalog.regions:
                await parts.start_executor(region, options)
            await parts.executors_are_known(socket)
        await parts.start_dispatcher()
        yield socket


@asynccontextmanager
async def _composing(home: Home, catalog: Catalog) -> AsyncIterator["_Parts"]:
    async with AsyncExitStack() as stack:
        adopt(home.postgres)
        url = stack.enter_context(embedded_postgres(home.postgres))
        await migrate_all(url)
        yield _Parts(stack, home, catalog, url)


class _Parts:
    """Starts parts of the installation; they end in reverse order with the stack."""

    def __init__(self, stack: AsyncExitStack, home: Home, catalog: Catalog, database_url: str) -> None:
        self._stack = stack
        self._home = home
        self._catalog = catalog
        self._database_url = database_url
        self._broker = MemoryBroker(catalog.regions)
        self._clock = SystemClock()
        self._began = self._clock.now()

    async def engine(self, name: str) -> Any:
        engine = create_engine(self._database_url, application_name=name, pool_size=POOL_SIZE)
        self._stack.push_async_callback(engine.dispose)
        return engine

    def _bus(self) -> MemoryBus:
        bus = MemoryBus(self._broker)
        self._stack.push_async_callback(bus.close)
        return bus

    def start_local_model(self) -> None:
        """Put the local model's address where it belongs; it is started only when the catalog names it."""
        regions = self._catalog.regions
        if any(region.endpoint == LOCAL_ENDPOINT for region in regions.values()):
            endpoint = f"openai+{self._stack.enter_context(local_model())}"
            localised = {
                name: region.model_copy(update={"endpoint": endpoint}) if region.endpoint == LOCAL_ENDPOINT else region
                for name, region in regions.items()
            }
            self._catalog = self._catalog.model_copy(update={"regions": localised})

    async def start_results(self) -> None:
        await self._stack.enter_async_context(
            results.app.running(
                bus=self._bus(),
                engine=await self.engine("parallax-results"),
                clock=self._clock,
                settings=results.settings.Settings(grace_s=GRACE_S),
            )
        )

    async def start_dispatcher(self) -> None:
        settings = dispatcher.settings.Settings(
            grace_s=GRACE_S, timer_s=TIMER_S, reconcile_after_s=RECONCILE_AFTER_S, resume_on_start=True
        )
        await self._stack.enter_async_context(
            dispatcher.app.running(
                bus=self._bus(),
                engine=await self.engine("parallax-dispatcher"),
                catalog=self._catalog,
                clock=self._clock,
                settings=settings,
            )
        )

    async def start_executor(self, region: str, options: Options) -> None:
        local = options.catalog.regions[region].endpoint == LOCAL_ENDPOINT
        endpoint = create_endpoint(self._catalog.regions[region].endpoint, {} if local else options.environment)
        self._stack.push_async_callback(endpoint.close)
        settings = executor.settings.Settings(
            region=region,
            executor_id=f"standalone-{region}",
            budget=options.budget,
            heartbeat_s=HEARTBEAT_S,
            grace_s=GRACE_S,
        )
        await self._stack.enter_async_context(
            executor.app.running(
                bus=self._bus(), catalog=self._catalog, endpoint=endpoint, clock=self._clock, settings=settings
            )
        )

    async def executors_are_known(self, socket: Path) -> None:
        """Wait for the first heartbeat of every executor of this process to be recorded.

        The last ones of a killed process still say what it ran; the dispatcher, asking what is missing, would be
        told that it is running.
        """
        try:
            async with ParallaxClient(HOME_URL, socket=socket) as client, asyncio.timeout(HEARTBEAT_WAIT_S):
                while not await self._are_known(client):  # noqa: ASYNC110 - the event is in the database
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise UnavailableError(f"the executors did not start within {HEARTBEAT_WAIT_S:.0f} s") from error

    async def _are_known(self, client: ParallaxClient) -> bool:
        regions = (await client.regions()).regions
        return all(any(e.started_at >= self._began for e in region.executors) for region in regions)

    async def serve_api(self, lock: HomeLock, engine: Any) -> Path:
        api = create_api(
            engine=engine, bus=self._bus(), catalog=self._catalog, clock=self._clock, settings=ApiSettings()
        )
        path = self._stack.enter_context(_socket_path(self._home))
        listening = self._stack.enter_context(bound_socket(path))
        await self._stack.enter_async_context(serving(api, listening))
        lock.announce(api=path)
        return path


@contextmanager
def _socket_path(home: Home) -> Iterator[Path]:
    path = home.root / "api.sock"
    if len(str(path).encode()) <= LONGEST_SOCKET_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="parallax-") as folder:
        yield Path(folder) / "api.sock"
