"""Composes an executor: a runner between the bus and the endpoint, and its heartbeat."""

import asyncio
import importlib.metadata
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from executor.endpoints.port import Endpoint
from executor.heartbeat import Heartbeat
from executor.runner import Runner
from executor.settings import Settings
from parallax.bus.port import Bus
from parallax.catalog import Catalog
from parallax.clock import Clock
from parallax.errors import InvalidInputError
from parallax.health import Health, Probe
from parallax.telemetry import get_logger

log = get_logger(__name__)


@asynccontextmanager
async def running(
    *, bus: Bus, catalog: Catalog, endpoint: Endpoint, clock: Clock, settings: Settings, random: Random | None = None
) -> AsyncIterator[Health]:
    """An executor that works while the context is entered; bus and endpoint are closed by whoever made them.

    Leaving stops taking tasks, lets calls in flight end within ``settings.grace_s``, aborts the others at the provider
    and hands them back.

    Raises:
        InvalidInputError: The catalog does not know the region.
        UnavailableError: The bus cannot be reached.
    """
    if settings.region not in catalog.regions:
        known = ", ".join(catalog.regions)
        raise InvalidInputError(f"region {settings.region!r} is not in the catalog; known regions: {known}")
    runner = Runner(
        bus=bus,
        catalog=catalog,
        endpoint=endpoint,
        clock=clock,
        settings=settings,
        random=random or Random(),  # noqa: S311 - jitter
        versions={"parallax": importlib.metadata.version("parallax-executor"), "python": platform.python_version()},
    )
    heartbeat = Heartbeat(bus, runner, clock, settings)
    beating: asyncio.Task[None] | None = None
    try:
        await heartbeat.introduce()
        await runner.start()
        beating = asyncio.create_task(heartbeat.run(), name="heartbeat")
        log.info("executor ready", region=settings.region, executor_id=settings.executor_id, budget=settings.budget)
        yield _health(runner, bus, beating)
    finally:
        await runner.stop()
        if beating is not None:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await heartbeat.send(leaving=True)


def _health(runner: Runner, bus: Bus, beating: asyncio.Task[None]) -> Health:
    """The probes; the last two watch tasks that nothing awaits, so that nothing else would notice their end."""

    async def bus_live() -> bool:
        return runner.live

    async def broker() -> bool:
        return bus.publishable

    async def heartbeat() -> bool:
        return not beating.done()

    async def publishing() -> bool:
        return runner.publishing

    probes: dict[str, Probe] = {
        "broker": broker,
        "bus": bus_live,
        "heartbeat": heartbeat,
        "publishing": publishing,
    }
    return Health(probes, advisory=frozenset({"broker"}))
