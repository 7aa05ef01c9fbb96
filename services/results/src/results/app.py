"""The writer of results, put together: everything that changes the ledger and the projection runs here."""

import asyncio
from collections.abc import AsyncIterator, Mapping
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
from parallax.health import Health, Probe, Refusals
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

    await migrate(engine, package="results", schema=SCHEMA)
    recorder = Recorder(bus=bus, engine=engine, clock=clock)
    consumers: dict[str, Serving] = {}
    refusals: dict[str, Refusals] = {}
    try:
        await recorder.start()
        # One by one: events of a job are then usually told in their order, and heartbeats are few.
        for name, queue, prefetch, handler in (
            ("events", EVENTS, 1, event),
            ("batches", BATCHES, PREFETCH, request),
            ("heartbeats", HEARTBEATS, 1, heartbeat),
        ):
            watched = refusals[name] = Refusals(clock)
            consumers[name] = await serve(bus, queue, prefetch=prefetch, handler=watched.watch(handler), clock=clock)
        yield _health(engine, recorder, consumers, refusals)
    finally:
        async with asyncio.TaskGroup() as closing:
            closing.create_task(recorder.close(settings.grace_s))
            for consumer in consumers.values():
                closing.create_task(consumer.close(settings.grace_s))


def _health(
    engine: AsyncEngine, recorder: Recorder, consumers: Mapping[str, Serving], refusals: Mapping[str, Refusals]
) -> Health:
    async def database() -> bool:
        await ping(engine)
        return True

    async def handlers() -> bool:
        return all([await each.none() for each in refusals.values()])

    probes: dict[str, Probe] = {"database": database, "facts": recorder.attached}
    probes |= {name: _live(consumer) for name, consumer in consumers.items()}
    probes |= {"ledger": recorder.progressing, "handlers": handlers}
    return Health(probes, advisory=frozenset({"ledger", "handlers"}))


def _live(consumer: Serving) -> Probe:
    async def probe() -> bool:
        return consumer.live

    return probe
