"""The writer of results, put together: everything that changes the ledger and the projection runs here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Final

from pydantic import Field, TypeAdapter
from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.port import Bus, Delivery
from parallax.bus.serve import Serving, serve
from parallax.clock import Clock
from parallax.contracts.messages import CloseBatch, ExecutorHeartbeat, InspectBatch
from parallax.contracts.routing import BATCHES, EVENTS, HEARTBEATS
from parallax.db.engine import ping
from parallax.db.migrations import migrate
from parallax.health import Health
from results import closings, heartbeats, projection
from results.projection import JobEvent
from results.recorder import Recorder
from results.settings import Settings
from results.tables import SCHEMA

PREFETCH: Final = 2
"""Requests about batches handled at once; each takes a connection of the pool for a moment."""

_REQUESTS: Final = TypeAdapter[CloseBatch | InspectBatch](
    Annotated[CloseBatch | InspectBatch, Field(discriminator="kind")]
)
_EVENTS: Final = TypeAdapter[JobEvent](Annotated[JobEvent, Field(discriminator="kind")])


@asynccontextmanager
async def running(*, bus: Bus, engine: AsyncEngine, clock: Clock, settings: Settings) -> AsyncIterator[Health]:
    """Run the writer: migrate, then take facts, requests, events and heartbeats until the block ends.

    Any number of writers may run at once. Leaving stops the consumers and writes what is at hand within
    ``settings.grace_s``; what is left goes back to the bus. Bus and engine stay the caller's.
    """

    async def request(delivery: Delivery) -> None:
        message = _REQUESTS.validate_json(delivery.body)
        if isinstance(message, CloseBatch):
            await closings.close(engine, bus, clock, message)
        else:
            await closings.inspect(engine, bus, clock, message)

    async def event(delivery: Delivery) -> None:
        await projection.project(engine, _EVENTS.validate_json(delivery.body), clock.now())

    async def heartbeat(delivery: Delivery) -> None:
        await heartbeats.beat(engine, ExecutorHeartbeat.model_validate_json(delivery.body), clock.now())

    async def database() -> bool:
        await ping(engine)
        return True

    async def broker() -> bool:
        return bus.publishable

    await migrate(engine, package="results", schema=SCHEMA)
    recorder = Recorder(bus=bus, engine=engine, clock=clock)
    consumers: dict[str, Recorder | Serving] = {"facts": recorder}
    try:
        await recorder.start()
        # One by one: events of a job are then usually told in their order, and heartbeats are few.
        consumers["events"] = await serve(bus, EVENTS, prefetch=1, handler=event, clock=clock)
        consumers["batches"] = await serve(bus, BATCHES, prefetch=PREFETCH, handler=request, clock=clock)
        consumers["heartbeats"] = await serve(bus, HEARTBEATS, prefetch=1, handler=heartbeat, clock=clock)
        yield Health({"broker": broker, "database": database} | {name: _live(each) for name, each in consumers.items()})
    finally:
        async with asyncio.TaskGroup() as closing:
            for consumer in consumers.values():
                closing.create_task(consumer.close(settings.grace_s))


def _live(consumer: Recorder | Serving) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return consumer.live

    return probe
