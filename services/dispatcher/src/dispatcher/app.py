"""Composes a dispatcher."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncEngine

from dispatcher.admission import Admission
from dispatcher.batches import BatchPublisher
from dispatcher.consumers import consuming
from dispatcher.fences import Fences
from dispatcher.handlers import Handlers
from dispatcher.publishing import Publisher
from dispatcher.reaper import Reaper
from dispatcher.settings import Settings
from dispatcher.steps import Steps
from dispatcher.store import Store
from parallax.bus.port import Bus
from parallax.catalog import Catalog
from parallax.clock import Clock
from parallax.health import Health, Probe


@asynccontextmanager
async def running(
    *, bus: Bus, engine: AsyncEngine, catalog: Catalog, clock: Clock, settings: Settings
) -> AsyncIterator[Health]:
    """A dispatcher at work. Entering starts everything; leaving drains. The schema is migrated before.

    Raises:
        UnavailableError: The database or the bus cannot be reached at the start.
    """
    store = Store(engine)
    steps = Steps(clock, inspect_after_s=settings.reconcile_after_s)
    batches = BatchPublisher(bus=bus, store=store, steps=steps, clock=clock, pace=settings.pace)
    publisher = Publisher(bus=bus, store=store, steps=steps, batches=batches, clock=clock)
    admission = Admission(store, steps, publisher, max_active_jobs=settings.max_active_jobs)
    handlers = Handlers(
        bus=bus, store=store, steps=steps, publisher=publisher, admission=admission, catalog=catalog, clock=clock
    )
    reaper = Reaper(
        store=store,
        steps=steps,
        publisher=publisher,
        fences=Fences(bus, catalog),
        admission=admission,
        clock=clock,
        timer_s=settings.timer_s,
        tombstones_kept_s=settings.tombstones_kept_s,
    )
    if settings.resume_on_start:
        await reaper.resume()
    async with (
        _drained(publisher, settings.grace_s),
        consuming(bus, handlers, clock=clock, settings=settings) as servings,
        _in_background(reaper),
    ):

        async def consumes() -> bool:
            return all(serving.live for serving in servings)

        async def broker() -> bool:
            return bus.publishable

        probes: dict[str, Probe] = {
            "broker": broker,
            "consumers": consumes,
            "database": store.answers,
            "timer": reaper.working,
        }
        # A broker that blocks publishing answers, and refuses; so does what keeps the timer from coming round, or else
        # another probe fails too.
        yield Health(probes, advisory=frozenset({"broker", "timer"}))


@asynccontextmanager
async def _in_background(reaper: Reaper) -> AsyncIterator[None]:
    task = asyncio.create_task(reaper.run(), name="dispatcher timer")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _drained(publisher: Publisher, grace_s: float) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await publisher.close(grace_s)
