"""The writer of results, put together: everything that changes the ledger and the projection runs here."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from parallax.bus.port import Bus, Delivery
from parallax.bus.serve import Serving, serve
from parallax.clock import Clock
from parallax.contracts.heartbeat import ExecutorHeartbeat
from parallax.contracts.messages import CloseBatch, InspectBatch, decode
from parallax.contracts.model import read
from parallax.contracts.routing import BATCHES, EVENTS, HEARTBEATS
from parallax.db.engine import ping
from parallax.errors import PoisonError
from parallax.health import Health, Probe, Refusals
from results import closings, heartbeats, projection
from results.projection import JobEvent
from results.recorder import Recorder
from results.settings import Settings

PREFETCH: Final = 2
"""Requests about batches handled at once; each takes a connection of the pool for a moment."""


@asynccontextmanager
async def running(*, bus: Bus, engine: AsyncEngine, clock: Clock, settings: Settings) -> AsyncIterator[Health]:
    """Run the writer on a migrated schema: take facts, requests, events and heartbeats until the block ends.

    Any number of writers may run at once. Leaving stops the consumers and writes what is at hand within
    ``settings.grace_s``; what is left goes back to the bus. Bus and engine stay the caller's.
    """

    async def request(delivery: Delivery) -> None:
        match decode(delivery.body):
            case CloseBatch() as message:
                await closings.close(engine, bus, clock, message)
            case InspectBatch() as message:
                await closings.inspect(engine, bus, clock, message)
            case other:
                raise PoisonError(f"{other.kind} does not belong into {BATCHES.name}")

    async def event(delivery: Delivery) -> None:
        message = decode(delivery.body)
        if not isinstance(message, JobEvent):
            raise PoisonError(f"{message.kind} does not belong into {EVENTS.name}")
        await projection.project(engine, message, clock.now())

    async def heartbeat(delivery: Delivery) -> None:
        await heartbeats.beat(engine, read(ExecutorHeartbeat, delivery.body), clock.now())

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
        yield _health(bus, engine, recorder, consumers, refusals)
    finally:
        async with asyncio.TaskGroup() as closing:
            closing.create_task(recorder.close(settings.grace_s))
            for consumer in consumers.values():
                closing.create_task(consumer.close(settings.grace_s))


def _health(
    bus: Bus,
    engine: AsyncEngine,
    recorder: Recorder,
    consumers: Mapping[str, Serving],
    refusals: Mapping[str, Refusals],
) -> Health:
    async def broker() -> bool:
        return bus.publishable

    async def database() -> bool:
        await ping(engine)
        return True

    async def handlers() -> bool:
        return all([await each.none() for each in refusals.values()])

    probes: dict[str, Probe] = {"broker": broker, "database": database, "facts": recorder.attached}
    probes |= {name: _live(consumer) for name, consumer in consumers.items()}
    probes |= {"ledger": recorder.progressing, "handlers": handlers}
    return Health(probes, advisory=frozenset({"broker", "ledger", "handlers"}))


def _live(consumer: Serving) -> Probe:
    async def probe() -> bool:
        return consumer.live

    return probe
